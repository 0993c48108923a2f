//! What a clip is made of, as one hash.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::files::hex;
use crate::output::Format;
use crate::request::{Job, Request, Spec};
use crate::{Error, Result};

/// The SHA-256 of all that decides the bytes of a clip, but for the kind of the device.
///
/// That is: the completed request with its seed; inputs by their hashes; weights in the order in which they are
/// applied, by their hashes, and their scales; dtype, quantization and kernels; the format and the version of the
/// program that made it, or this one. Names and paths are left out.
///
/// # Errors
///
/// None that a completed job can have.
pub fn key(job: &Job, format: Format) -> Result<String> {
    let Job { models, request, tensors_in, weights, program } = job;
    let version = program.as_ref().map_or(env!("CARGO_PKG_VERSION"), |program| &program.version);
    let Spec { lcm_lora, loras, embeddings, lora_legacy_scale, allow_partial, .. } = models;
    let Spec { dtype, quantize, kernels, .. } = models;
    let scales =
        |lora: &crate::request::WeightedFile| json!([lora.scale, lora.text_scale, lora.blocks]);
    let request = without_paths(request.clone());
    let made_of = json!({
        "request": json_of(&Job::new(Spec::default(), request))?,
        "tensors_in": tensors_in.as_ref().map(|file| &file.sha256),
        "weights": weights.iter().map(|file| &file.sha256).collect::<Vec<_>>(),
        "lcm_lora": lcm_lora.as_ref().map(scales),
        "loras": loras.iter().map(scales).collect::<Vec<_>>(),
        "embeddings": embeddings.iter().map(|file| &file.word).collect::<Vec<_>>(),
        "lora_legacy_scale": lora_legacy_scale,
        "allow_partial": allow_partial,
        "dtype": dtype,
        "quantize": quantize,
        "kernels": kernels,
        "format": format.name(),
        "version": version,
    });
    Ok(hash(&made_of))
}

/// A request whose files are known by their hashes alone.
fn without_paths(mut request: Request) -> Request {
    let networks: Vec<String> = super::networks(&request).into_iter().map(str::to_owned).collect();
    let shared: Vec<bool> =
        request.controls.iter().map(|c| request.shared_video(c).is_some()).collect();
    let mut adapters: Vec<String> = request.ip_adapters.iter().map(|a| a.model.clone()).collect();
    adapters.sort();
    adapters.dedup();
    let index = |names: &[String], name: &str| {
        names.binary_search_by(|known| known.as_str().cmp(name)).unwrap_or_default().to_string()
    };
    if let Some(source) = &mut request.source {
        for file in [&mut source.image, &mut source.video].into_iter().flatten() {
            file.clear();
        }
        if let Some(mask) = &mut source.mask {
            mask.file.clear();
        }
    }
    for (control, is_shared) in request.controls.iter_mut().zip(shared) {
        control.model = index(&networks, &control.model);
        if !is_shared {
            control.hint.clear();
        }
    }
    for adapter in &mut request.ip_adapters {
        adapter.model = index(&adapters, &adapter.model);
        for image in adapter.images.iter_mut().chain(&mut adapter.masks) {
            image.file.clear();
        }
    }
    request
}

/// A job as JSON.
pub(crate) fn json_of(job: &Job) -> Result<Value> {
    serde_json::to_value(job).map_err(|e| Error::Encode { format: "json", reason: e.to_string() })
}

/// The SHA-256 of canonical JSON: keys sorted, no spaces.
pub(crate) fn hash(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    let mut hash = Sha256::new();
    hash.update(text);
    hex(hash)
}

/// Writes canonical JSON, in whatever order the map has its keys.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(values) => {
            out.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(value, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (i, (key, value)) in fields.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&json!(key).to_string());
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Control, FileRecord, Source};

    #[test]
    fn canonical_json_has_sorted_keys_and_no_spaces() {
        let mut text = String::new();
        write(&json!({"b": [1, 2.5, null, "é\""], "a": {"d": true, "c": {}}}), &mut text);
        assert_eq!(text, r#"{"a":{"c":{},"d":true},"b":[1,2.5,null,"é\""]}"#);
    }

    #[test]
    fn a_key_knows_contents_and_no_paths() {
        let control = |hint: &str, model: &str| {
            let mut control = Control::parse(&format!("canny={hint},model={model}"), &|_| false);
            control.as_mut().unwrap().sha256 = Some("1".into());
            control.unwrap()
        };
        let job = |change: &dyn Fn(&mut Job)| {
            let mut job = Job::new(Spec::default(), Request::new("a cat"));
            job.request.sampling.seed = Some(1);
            job.request.source =
                Some(Source { sha256: Some("2".into()), ..Source::image("dir/a.png") });
            job.request.controls = vec![control("a.png", "m.pt"), control("a.png", "n.pt")];
            job.weights = vec![FileRecord { file: "w".into(), sha256: Some("3".into()) }];
            change(&mut job);
            key(&job, Format::Gif).unwrap()
        };
        let plain = job(&|_| ());
        assert_eq!(plain.len(), 64);
        let same: [&dyn Fn(&mut Job); 4] = [
            &|job| job.request.source.as_mut().unwrap().image = Some("b.png".into()),
            &|job| job.request.controls[0].hint = "other.png".into(),
            &|job| job.weights[0].file = "renamed".into(),
            &|job| job.models.model = Some("renamed".into()),
        ];
        for change in same {
            assert_eq!(job(change), plain);
        }
        let other: [&dyn Fn(&mut Job); 8] = [
            &|job| job.request.prompt.text.push('s'),
            &|job| job.request.sampling.seed = Some(2),
            &|job| job.request.source.as_mut().unwrap().sha256 = Some("4".into()),
            &|job| job.request.controls[0].sha256 = Some("4".into()),
            // Two networks that change places.
            &|job| job.request.controls.reverse(),
            &|job| job.weights[0].sha256 = Some("4".into()),
            &|job| job.models.loras.push("a:0.5".parse().unwrap()),
            &|job| job.models.dtype = "f16".parse().unwrap(),
        ];
        for (i, change) in other.into_iter().enumerate() {
            assert_ne!(job(change), plain, "{i}");
        }
        let job = Job::new(Spec::default(), Request::new("a cat"));
        assert_ne!(key(&job, Format::Gif).unwrap(), key(&job, Format::Webp).unwrap());
    }
}
