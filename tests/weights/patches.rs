//! Changes of weights.

use std::collections::BTreeSet;
use std::sync::Arc;

use animatelcm::Result;
use animatelcm::weights::{Component, PatchStack, WeightPatch};
use candle_core::{DType, Tensor};

use crate::support::weights::{build, bytes_of, tiny};

#[derive(Debug)]
struct Plus {
    value: f64,
    names: BTreeSet<String>,
}

impl Plus {
    fn new(value: f64, names: &[&str]) -> Arc<Self> {
        Arc::new(Self { value, names: names.iter().map(|name| (*name).to_owned()).collect() })
    }
}

impl WeightPatch for Plus {
    fn label(&self) -> &'static str {
        "plus"
    }

    fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    fn apply(&self, _: &str, weight: &Tensor, strength: f64) -> Result<Tensor> {
        Ok(weight.affine(2.0, self.value * strength)?)
    }
}

#[test]
fn patches_apply_in_order_to_their_component_only() {
    let checkpoint = tiny();
    let mut patches = PatchStack::new();
    patches.push(Component::Vae, Plus::new(1.0, &["quant_conv.bias"]), 1.0);
    patches.push(Component::Vae, Plus::new(1.0, &["quant_conv.bias"]), 10.0);
    patches.push(Component::UNet, Plus::new(1.0, &["not.there"]), 10.0);
    let plain = build(&checkpoint, Component::Vae, DType::F32, &PatchStack::new()).unwrap().0;
    let (patched, report) = build(&checkpoint, Component::Vae, DType::F32, &patches).unwrap();
    let name = "quant_conv.bias";
    let want = plain[name].affine(4.0, 12.0).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(patched[name].to_vec1::<f32>().unwrap(), want);
    assert_eq!(report.patched, [("plus".into(), 1), ("plus".into(), 1)]);
    assert_eq!(
        bytes_of(&patched["post_quant_conv.bias"]),
        bytes_of(&plain["post_quant_conv.bias"])
    );
}

#[test]
fn a_patch_whose_weights_are_not_there_fails() {
    let mut patches = PatchStack::new();
    patches.push(Component::Vae, Plus::new(1.0, &["quant_conv.bias", "not.there"]), 1.0);
    let error = build(&tiny(), Component::Vae, DType::F32, &patches).unwrap_err();
    assert_eq!(
        error.to_string(),
        "adapter `plus`: 1 of the 2 weights that it changes are not in the vae: `not.there`"
    );
}

#[test]
fn a_patch_that_leaves_the_range_of_the_dtype_fails() {
    for (dtype, ok) in [(DType::F32, true), (DType::F16, false)] {
        let mut patches = PatchStack::new();
        patches.push(Component::Vae, Plus::new(1e6, &["quant_conv.bias"]), 1.0);
        let built = build(&tiny(), Component::Vae, dtype, &patches);
        assert_eq!(built.is_ok(), ok, "{dtype:?}");
        if let Err(error) = built {
            assert!(error.to_string().contains("too large for f16"), "{error}");
        }
    }
}
