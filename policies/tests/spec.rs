//! Specs: what is accepted, and where the fault of the rest is.

use policies::scheduler::VICTIMS;
use policies::{EVICTORS, Geometry, LayerClass, POLICIES, Reach, make_policy};
use proptest::prelude::*;

/// Full attention and a window.
fn geometry() -> Geometry {
    let class = |name: &str, reach, cells| LayerClass { name: name.to_owned(), layers: 1, reach, cells };
    Geometry {
        classes: vec![class("global", Reach::Full, 64), class("local", Reach::Window(8), 32)],
        context_max: 40,
        batch_max: 8,
        sequences_max: 4,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_spec_text_is_accepted_or_refused_with_a_place(
        text in "[a-z0-9:+=()]{0,24}|(contiguous|paged|shift|defrag)[:+][a-z0-9=:+]{0,12}|(paged|radix)(:4)?\\+prefix[(]?[lrufiosco:=()]{0,12}",
    ) {
        if let Err(error) = policies::check_spec(&text) {
            prop_assert!(error.at.end <= text.len());
            prop_assert!(!error.message.is_empty());
        }
    }
}

#[test]
fn every_policy_of_the_table_is_made_from_its_name() {
    for spec in POLICIES {
        assert!(make_policy(spec.name, &geometry()).is_ok(), "{}", spec.name);
        assert!(!spec.about.is_empty() && !spec.source.is_empty() && !spec.cost.is_empty());
        assert!(
            spec.knobs.iter().all(|knob| !knob.about.is_empty() && !knob.default.is_empty()),
            "{}",
            spec.name
        );
    }
    for rule in &EVICTORS {
        let spec = format!("paged+prefix({})", rule.name);
        assert!(make_policy(&spec, &geometry()).is_ok(), "{spec}");
        assert!(!rule.about.is_empty() && !rule.source.is_empty() && !rule.cost.is_empty());
    }
    assert!(VICTIMS.iter().all(|rule| !rule.about().is_empty() && !rule.source().is_empty()));
}

#[test]
fn an_extension_has_its_arguments_in_parentheses() {
    for spec in [
        "paged+prefix",
        "paged:16+prefix(lru)",
        "paged+prefix(evict=s3fifo:partial=cow)",
        "paged+prefix(cost)",
        "paged+prefix(lru:none:leaf)",
        "radix",
        "radix:evict=lfu:block=16",
        "paged:16+prefix(lru)+swap",
        "paged:16+prefix(lru)+tiered(host=1000:ahead=10)+swap",
        "paged+swap(host=1000)",
        "tiered:16+swap",
    ] {
        assert_eq!(policies::check_spec(spec), Ok(()), "{spec}");
    }
    assert_eq!(policies::block_size("paged:32+prefix(lru:cow)"), Ok(32));
    assert_eq!(policies::block_size("radix"), Ok(1));
}

#[test]
fn errors_point_at_the_part_that_is_wrong() {
    let at = |text: &str| policies::check_spec(text).expect_err("it is wrong").at;
    assert_eq!(at("pagd"), 0..4);
    assert_eq!(at("paged:x"), 6..7);
    assert_eq!(at("vmem:16+swap"), 8..12);
    assert_eq!(at("paged+prefix(lru:cow)+swap"), 17..20);
    assert_eq!(at("paged+tiered(64)+swap(64)"), 22..24);
    assert_eq!(at("contiguous:max:worst"), 15..20);
    assert_eq!(at("contiguous:size=3"), 11..17);
    assert_eq!(at("defrag:share=900"), 7..16);
    assert_eq!(at("shift:drop=100%"), 6..15);
    assert_eq!(at("sinks:drop=0"), 6..12);
    assert_eq!(at("paged+prefix(lur)"), 13..16);
    assert_eq!(at("paged+prefix(lru:cow:leaf:x)"), 26..27);
    assert_eq!(at("paged+prefix(partial=no)"), 13..23);
    assert_eq!(at("paged+prefix(size=3)"), 13..19);
    assert_eq!(at("paged+prefix(lru:evict=lru)"), 13..16);
    assert_eq!(at("paged+prefix(lru"), 12..16);
    assert_eq!(at("paged+prefix()"), 13..13);
    assert_eq!(at("paged+prefix(lru)+prefix(fifo)"), 18..30);
    assert_eq!(at("paged+swap(lru)"), 11..14);
    assert_eq!(at("defrag+shift(3)"), 13..14);
    assert_eq!(at("sinks+unrotated(3)"), 16..17);
    assert_eq!(at("vllm+unrotated"), 5..14);
    assert_eq!(at("radix:16:lru:cwo"), 13..16);
}
