//! Networks of a pipeline: loaded when they are needed, kept or dropped.

use std::path::Path;

use candle_core::DType;

use super::load::Models;
use super::{Event, Observer, Pipeline, Residency};
use crate::Result;
use crate::device::Precision;
use crate::weights::{Component, Resident};

impl Pipeline {
    /// Loads all parts now instead of when they are needed. With [`Residency::KeepAll`] they then stay.
    pub fn load(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.load_text(observer)?;
        if self.models.side_networks().any(|(_, config)| config.sees_latents()) {
            self.load_encoder(observer)?;
        }
        self.load_vae(observer)?;
        let names: Vec<String> = self.models.side_networks().map(|(n, _)| n.to_owned()).collect();
        self.load_side_networks(names, observer)?;
        let names: Vec<String> = self.models.ip_adapters().map(str::to_owned).collect();
        for name in names {
            let encoder = self.models.ip_adapter_config(&name)?.1.to_path_buf();
            self.load_image_encoder(&encoder, observer)?;
            self.load_ip_adapter(&name, observer)?;
        }
        self.load_unet(observer)
    }

    /// Builds a model of what is left of it in memory and the files.
    pub(super) fn build<T>(
        &mut self,
        component: Component,
        dtype: DType,
        build: impl FnOnce(&Models, &mut Resident) -> Result<T>,
    ) -> Result<T> {
        if self.residency == Residency::Sequential || self.device.is_cpu() {
            return build(&self.models, &mut Resident::empty(dtype, &self.device));
        }
        let fresh = || Resident::new(dtype, &self.device);
        build(&self.models, self.resident.entry(component).or_insert_with(fresh))
    }

    pub(super) fn load_image_encoder(
        &mut self,
        path: &Path,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if !self.image_encoders.contains_key(path) {
            let dtype = self.precision.text;
            let bytes = self.models.image_encoder_bytes(path, dtype);
            observer.event(Event::Load { part: "image-encoder", bytes })?;
            let (encoder, report) = self.models.image_encoder(path, dtype, &self.device)?;
            observer.event(Event::Report { report })?;
            self.image_encoders.insert(path.to_path_buf(), encoder);
        }
        Ok(())
    }

    pub(super) fn load_ip_adapter(
        &mut self,
        name: &str,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if !self.ip_adapters.contains_key(name) {
            let dtype = self.precision.text;
            let bytes = self.models.ip_adapter_bytes(name, dtype);
            observer.event(Event::Load { part: "ip-adapter", bytes })?;
            let (adapter, report) = self.models.ip_adapter(name, dtype, &self.device)?;
            observer.event(Event::Report { report })?;
            self.ip_adapters.insert(name.to_owned(), adapter);
        }
        Ok(())
    }

    pub(super) fn load_text(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.text.is_none() {
            observer.event(Event::Load { part: "text", bytes: self.models.text_bytes() })?;
            let (text, report) =
                self.build(Component::Text, self.precision.text, Models::rebuild_text)?;
            observer.event(Event::Report { report })?;
            self.text = Some(text);
        }
        Ok(())
    }

    pub(super) fn load_unet(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.unet.is_none() {
            let Precision { unet: dtype, quantize, .. } = self.precision;
            let bytes = self.models.unet_bytes(self.precision);
            observer.event(Event::Load { part: "unet", bytes })?;
            let (unet, report) = self.build(Component::UNet, dtype, |models, resident| {
                models.rebuild_unet(resident, quantize)
            })?;
            observer.event(Event::Report { report })?;
            self.unet = Some(unet);
        }
        Ok(())
    }

    pub(super) fn load_side_networks(
        &mut self,
        names: impl IntoIterator<Item = String>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        for name in names {
            if self.side_networks.contains_key(&name) {
                continue;
            }
            let bytes = self.models.side_network_bytes(&name, self.precision);
            let part =
                self.models.side_config(&name).map_or("controlnet", |c| c.component().name());
            observer.event(Event::Load { part, bytes })?;
            let (net, report) = self.models.side_network(&name, self.precision, &self.device)?;
            observer.event(Event::Report { report })?;
            self.side_networks.insert(name, net);
        }
        Ok(())
    }

    pub(super) fn load_encoder(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.encoder.is_none() {
            let bytes = self.models.vae_encoder_bytes(self.precision.vae);
            observer.event(Event::Load { part: "vae-encoder", bytes })?;
            let (encoder, report) = self.models.vae_encoder(self.precision.vae, &self.device)?;
            observer.event(Event::Report { report })?;
            self.encoder = Some(encoder);
        }
        Ok(())
    }

    pub(super) fn load_vae(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.vae.is_none() {
            let bytes = self.models.vae_bytes(self.precision.vae);
            observer.event(Event::Load { part: "vae", bytes })?;
            let (vae, report) = self.models.vae(self.precision.vae, &self.device)?;
            observer.event(Event::Report { report })?;
            self.vae = Some(vae);
        }
        Ok(())
    }
}
