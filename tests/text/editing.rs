//! Prompts that change between steps, against AUTOMATIC1111's schedules.

use animatelcm::text::editing::{Version, versions};

use crate::support::golden;

#[test]
fn every_prompt_has_the_versions_of_the_web_ui() {
    /// Prompt, steps, and the prompt until each step.
    type Case = (String, usize, Vec<(usize, String)>);
    let cases = golden::json("prompt_editing");
    let cases: Vec<Case> = serde_json::from_value(cases["cases"].clone()).unwrap();
    assert!(cases.len() > 80);
    for (prompt, steps, want) in cases {
        let got = versions(&prompt, steps).unwrap().into_iter();
        let got: Vec<_> = got.map(|Version { until, text }| (until, text)).collect();
        assert_eq!(got, want, "{prompt} in {steps} steps");
    }
}

#[test]
fn hypernetworks_are_gone_before() {
    let texts = |prompt: &str| -> Vec<String> {
        versions(prompt, 4).unwrap().into_iter().map(|version| version.text).collect()
    };
    assert_eq!(texts("[a <hypernet:x:0.5>:b:2]"), ["a ", "b"]);
}
