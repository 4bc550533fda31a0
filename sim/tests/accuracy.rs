//! The gates of `docs/accuracy.md` against a real, KV-saturated vLLM run.

#[path = "../examples/accuracy.rs"]
mod accuracy;

#[test]
fn golden_a_real_server_is_predicted_within_the_gates() {
    let Some(folder) = accuracy::folder() else {
        eprintln!("skipped: no folder vllm-4090 under KVLAB_GOLDEN (default ../shared/golden)");
        return;
    };
    let (measured, predictions) = accuracy::compare(&folder).expect("the folder is readable");
    for name in ["fitted, 15 steps", "table"] {
        let prediction =
            predictions.iter().find(|prediction| prediction.name == name).expect("it was simulated");
        let [ttft, tpot, latency, _] = prediction.errors(&measured);
        assert!(ttft.abs() <= 0.05, "{name}: TTFT is {:+.1} % off", ttft * 100.0);
        assert!(tpot.abs() <= 0.03, "{name}: TPOT is {:+.1} % off", tpot * 100.0);
        assert!(latency.abs() <= 0.03, "{name}: latency is {:+.1} % off", latency * 100.0);
        assert!(prediction.preemptions > 100, "{name}: the cache was not full");
    }
    // What the comparison is about: the memory side shows in the numbers.
    let error = |name: &str| {
        let prediction =
            predictions.iter().find(|prediction| prediction.name == name).expect("it was simulated");
        prediction.errors(&measured)[0]
    };
    assert!(error("fitted, no reuse after preemption") > error("fitted, 15 steps") + 0.01);
    assert!(error("fitted, 4.3 % more blocks") < error("fitted, 15 steps") - 0.01);
}
