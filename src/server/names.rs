//! Every name in a job that could lead to a file: of a catalog or an upload, or it is refused.

use super::answer::{Answer, Problem};
use super::catalog::{Catalog, EMBEDDED};
use crate::Quantize;
use crate::device::{DeviceChoice, DtypeChoice, KernelChoice};
use crate::queue::Store;
use crate::request::{Control, FileRecord, IpAdapter, Job, Quality, Request, Source, Spec};

use axum::http::StatusCode;

/// Fails unless all names are of the catalog or of uploads, and all that a server decides is left to it. Uploads are
/// given their hashes.
///
/// Every structure with a path in it is taken apart in full, so that a new field does not compile until it is here.
pub(super) fn check(job: &mut Job, catalog: &Catalog, uploads: &dyn Store) -> Answer<()> {
    let shared: Vec<bool> =
        job.request.controls.iter().map(|c| job.request.shared_video(c).is_some()).collect();
    let Job { models, request, tensors_in, weights, program } = job;
    if tensors_in.is_some() {
        return Err(Problem::unsupported("tensors_in", "tensors cannot be sent"));
    }
    // What a finished clip says of itself is no demand.
    weights.clear();
    *program = None;
    spec(models, catalog)?;

    let Request {
        prompt: _,
        source,
        size: _,
        sampling: _,
        schedule: _,
        quality,
        controls,
        ip_adapters,
        windows: _,
        output: _,
        background_color: _,
    } = request;
    let Quality {
        guidance_rescale: _,
        dynamic_thresholding: _,
        free_u: _,
        free_init: _,
        pag: _,
        vae_tiling: _,
        hires: _,
    } = quality;
    if let Some(source) = source {
        let Source {
            image,
            video,
            sha256,
            strength: _,
            fps: _,
            from: _,
            every: _,
            fit: _,
            motion_scale: _,
            insertion_weights: _,
            color_match: _,
            keep: _,
            mask,
            overlay: _,
        } = source;
        for name in [image, video].into_iter().flatten() {
            *sha256 = Some(upload("source", name, uploads)?);
        }
        if let Some(mask) = mask {
            record("source.mask", mask, uploads)?;
        }
    }
    for (control, is_shared) in controls.iter_mut().zip(shared) {
        let Control {
            name: _,
            hint,
            sha256,
            model,
            scale: _,
            start: _,
            end: _,
            frames: _,
            from: _,
            every: _,
            guess: _,
            fit: _,
            preprocess: _,
        } = control;
        model_of("control", model, catalog)?;
        if is_shared {
            *sha256 = None;
        } else {
            *sha256 = Some(upload("controls", hint, uploads)?);
        }
    }
    for adapter in ip_adapters {
        let IpAdapter { name: _, images, model, scale: _, start: _, end: _, masks, per_frame: _ } =
            adapter;
        model_of("ip-adapter", model, catalog)?;
        for image in images.iter_mut().chain(masks) {
            record("ip_adapters", image, uploads)?;
        }
    }
    Ok(())
}

fn spec(spec: &mut Spec, catalog: &Catalog) -> Answer<()> {
    let Spec {
        model,
        model_config,
        checkpoint,
        vae,
        motion,
        lcm_lora,
        loras,
        embeddings,
        image_encoder,
        depth_model,
        lora_legacy_scale: _,
        allow_partial: _,
        device,
        dtype,
        quantize,
        kernels,
    } = spec;
    for (field, name) in [
        ("model", &*model),
        ("checkpoint", &*checkpoint),
        ("vae", &*vae),
        ("motion", &*motion),
        ("image-encoder", &*image_encoder),
        ("depth-model", &*depth_model),
    ] {
        if let Some(name) = name {
            model_of(field, name, catalog)?;
        }
    }
    // A request without a model means the one inside.
    model.take_if(|name| name == EMBEDDED);
    if model_config.is_some() {
        return Err(Problem::unsupported("model_config", "configurations cannot be named"));
    }
    if let Some(lora) = lcm_lora {
        model_of("lcm-lora", &lora.file, catalog)?;
    }
    for lora in loras {
        model_of("lora", &lora.file, catalog)?;
    }
    for embedding in embeddings {
        model_of("embedding", &embedding.file, catalog)?;
    }
    for (param, is_left) in [
        ("device", *device == DeviceChoice::default()),
        ("dtype", *dtype == DtypeChoice::default()),
        ("quantize", *quantize == Quantize::default()),
        ("kernels", *kernels == KernelChoice::default()),
    ] {
        if !is_left {
            let message = format!("{param}: the server chooses it");
            return Err(Problem::unsupported(param, message).hint("leave it out"));
        }
    }
    Ok(())
}

/// Fails unless the catalog has the name for a field.
pub(super) fn model_of(field: &str, name: &str, catalog: &Catalog) -> Answer<()> {
    if catalog.has(field, name) {
        return Ok(());
    }
    let shown: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    let message = format!("{field}: this server has no `{shown}`");
    let problem = Problem::new(StatusCode::NOT_FOUND, "model_not_found", message).param(field);
    Err(match catalog.near(field, name) {
        Some(near) => problem.hint(format!("did you mean `{near}`?")),
        None => problem.hint("`GET /v1/models` lists what is here"),
    })
}

fn record(param: &str, file: &mut FileRecord, uploads: &dyn Store) -> Answer<()> {
    file.sha256 = Some(upload(param, &file.file, uploads)?);
    Ok(())
}

/// The hash of an upload that is there.
fn upload(param: &str, name: &str, uploads: &dyn Store) -> Answer<String> {
    let there = name.strip_prefix("upload:").and_then(|sha256| {
        let path = uploads.open(sha256).ok().flatten();
        path.map(|_| sha256.to_owned())
    });
    there.ok_or_else(|| {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        let message = format!("{param}: `{shown}` is no upload of this server");
        Problem::invalid(param, message).hint("`POST /v1/uploads` answers with the name to use")
    })
}
