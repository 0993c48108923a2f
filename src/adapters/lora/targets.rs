//! Lookup of the weight of a LoRA module, in a table of all spellings of the model's names.

use std::collections::HashMap;

use crate::weights::{Checkpoint, Component, canonical_motion_name, ldm_unet_module};

/// Spellings of module names, with underscores for dots, mapped to canonical weight names.
#[derive(Debug)]
pub(super) struct Targets<'a> {
    tables: HashMap<Component, HashMap<String, &'a str>>,
}

impl<'a> Targets<'a> {
    /// Collects every spelling of every layer in the UNet and the text encoder.
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        let tables = [Component::UNet, Component::Text]
            .into_iter()
            .map(|component| (component, table(checkpoint, component)))
            .collect();
        Self { tables }
    }

    /// The component and canonical name of a module's weight.
    pub(super) fn find(&self, module: &str) -> Option<(Component, &'a str)> {
        let (component, name) = without_prefix(module);
        let name = canonical_motion_name(name).replace('.', "_");
        let wanted: &[Component] = match &component {
            Some(component) => std::slice::from_ref(component),
            None => &[Component::UNet, Component::Text],
        };
        wanted.iter().find_map(|component| {
            let weight = self.tables.get(component)?.get(&name)?;
            Some((*component, *weight))
        })
    }
}

/// Returns whether a module belongs to CLIP's `text_projection`, which extracted LoRAs have but images do not depend
/// on.
pub(super) fn is_projection(module: &str) -> bool {
    let (component, name) = without_prefix(module);
    component == Some(Component::Text)
        && matches!(name, "text_projection" | "text_model.text_projection")
}

/// The component given by the prefix of a module's name, and the name without the prefix.
fn without_prefix(module: &str) -> (Option<Component>, &str) {
    const PREFIXES: [(&str, Option<Component>); 17] = [
        ("lora_unet_", Some(Component::UNet)),
        ("lora_te_", Some(Component::Text)),
        ("lora_te1_", Some(Component::Text)),
        ("oft_unet_", Some(Component::UNet)),
        ("oft_te_", Some(Component::Text)),
        // LyCORIS networks created without a component prefix.
        ("lycoris_", None),
        ("unet.", Some(Component::UNet)),
        ("text_encoder.", Some(Component::Text)),
        ("model.diffusion_model.", Some(Component::UNet)),
        ("diffusion_model.", Some(Component::UNet)),
        ("cond_stage_model.transformer.", Some(Component::Text)),
        // ComfyUI's names of the text encoder.
        ("text_encoders.clip_l.transformer.", Some(Component::Text)),
        ("text_encoders.clip_l.", Some(Component::Text)),
        ("lora_text_encoders_clip_l_transformer_", Some(Component::Text)),
        ("clip_l.transformer.", Some(Component::Text)),
        ("te1.", Some(Component::Text)),
        ("base_model.model.", None),
    ];
    PREFIXES
        .into_iter()
        .find_map(|(prefix, component)| Some((component, module.strip_prefix(prefix)?)))
        .unwrap_or((None, module))
}

fn table(checkpoint: &Checkpoint, component: Component) -> HashMap<String, &str> {
    let weights: Vec<(&str, &str)> = checkpoint
        .names(component)
        .filter_map(|name| Some((name, name.strip_suffix(".weight")?)))
        .collect();
    let mut table: HashMap<String, &str> =
        weights.iter().map(|(weight, module)| (module.replace('.', "_"), *weight)).collect();
    let layers = layers_per_level(weights.iter().map(|(_, module)| *module));
    let attends = |level: usize| {
        let prefix = format!("up_blocks.{level}.attentions.");
        weights.iter().any(|(_, module)| module.starts_with(&prefix))
    };
    for (weight, module) in &weights {
        let mut spellings = vec![(*module).to_owned()];
        match component {
            Component::UNet => {
                spellings.extend(ldm_unet_module(module, layers, attends));
                spellings.extend(original_motion_module(module));
            }
            _ => spellings.extend(text_spellings(module)),
        }
        for spelling in spellings {
            // `to_out` is a list of a linear layer and a dropout; many files only name the list.
            if let Some(list) = spelling.strip_suffix(".to_out.0") {
                table.entry(format!("{list}.to_out").replace('.', "_")).or_insert(weight);
            }
            // Canonical names were inserted first and take precedence.
            table.entry(spelling.replace('.', "_")).or_insert(weight);
        }
    }
    table
}

/// Number of residual blocks per level of the down path.
pub(super) fn layers_per_level<'a>(modules: impl Iterator<Item = &'a str>) -> usize {
    modules
        .filter_map(|module| module.strip_prefix("down_blocks.0.resnets."))
        .filter_map(|tail| tail.split('.').next()?.parse::<usize>().ok())
        .map(|layer| layer + 1)
        .max()
        .unwrap_or(1)
}

/// AnimateDiff's original name of a module, from which Kohya's spelling is derived.
fn original_motion_module(module: &str) -> Option<String> {
    let (place, tail) = module.split_once(".motion_modules.")?;
    let (number, tail) = tail.split_once('.')?;
    let tail =
        tail.replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1.");
    Some(format!("{place}.motion_modules.{number}.temporal_transformer.{tail}"))
}

/// Spellings of text encoder modules: with and without `text_model.`, and with `to_q` for `q_proj` as in old diffusers.
fn text_spellings(module: &str) -> Vec<String> {
    let bare = module.strip_prefix("text_model.").unwrap_or(module);
    let mut spellings = vec![bare.to_owned()];
    for (ours, theirs) in
        [(".q_proj", ".to_q"), (".k_proj", ".to_k"), (".v_proj", ".to_v"), (".out_proj", ".to_out")]
    {
        if let Some(attention) = bare.strip_suffix(ours) {
            spellings.push(format!("{attention}{theirs}"));
            spellings.push(format!("text_model.{attention}{theirs}"));
        }
    }
    spellings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_tell_the_component() {
        assert_eq!(
            without_prefix("lora_te1_text_model_x"),
            (Some(Component::Text), "text_model_x")
        );
        assert_eq!(without_prefix("unet.conv_in"), (Some(Component::UNet), "conv_in"));
        assert_eq!(without_prefix("base_model.model.conv_in"), (None, "conv_in"));
        assert_eq!(without_prefix("down_blocks.0"), (None, "down_blocks.0"));
        assert_eq!(without_prefix("lora_te2_text_model_x"), (None, "lora_te2_text_model_x"));
    }
}
