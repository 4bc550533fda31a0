//! The linear scan beside the policy that it is measured against: as much is found, and as many blocks are free.

use benches::linear_prefix::Prefix;
use benches::load::{Load, Prompts, geometry};
use policies::{ClassId, Plan, make_policy};

#[test]
fn a_linear_scan_finds_what_the_policy_finds() {
    // Contexts of 80 tokens: a prompt is two blocks and a half, and not all 64 prompts fit beside the running ones.
    let geometry = geometry(256 * 80, false);
    let load = |policy| Load::new(policy, Plan::without_writes(), Prompts::Shared);
    let mut ours = load(make_policy("paged:16+prefix", &geometry).expect("the spec is good"));
    let mut naive = load(Box::new(Prefix::new(&geometry, 16)));
    for _ in 0..300 {
        ours.step();
        naive.step();
        assert_eq!((ours.asked, ours.found), (naive.asked, naive.found));
        assert_eq!(ours.policy().usage(ClassId(0)), naive.policy().usage(ClassId(0)));
    }
    assert_eq!(naive.policy().audit(), Ok(()));
    assert!(ours.found > ours.asked / 10, "{} of {} found", ours.found, ours.asked);
}
