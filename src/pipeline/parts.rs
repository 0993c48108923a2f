//! Networks of a pipeline, taken from its library when they are needed.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::{Event, Observer, Pipeline, Prepared};
use crate::Result;
use crate::device::Precision;
use crate::library::{Key, Models, Part, SideNetwork};
use crate::models::clip::VisionEncoder;
use crate::models::depth_anything::DepthAnything;
use crate::models::i2v_encoder::I2vEncoder;
use crate::models::image_projection::IpAdapter;
use crate::models::unet::UNet;
use crate::models::vae::{Vae, VaeEncoder};
use crate::text::TextModel;
use crate::weights::{Component, LoadReport, Resident};

impl Pipeline {
    /// Loads all networks now instead of when they are needed, as far as the library keeps them.
    ///
    /// # Errors
    ///
    /// When weights do not fit, or the observer says stop.
    pub fn load(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.text(observer)?;
        let is_i2v = self.models.i2v_encoder_config().is_some();
        if is_i2v || self.models.side_networks().any(|(_, config)| config.sees_latents()) {
            self.vae_encoder(observer)?;
        }
        if is_i2v {
            self.i2v_encoder(observer)?;
        }
        self.vae(observer)?;
        for (name, _) in self.models.side_networks() {
            self.side_network(name, observer)?;
        }
        for name in self.models.ip_adapters() {
            self.image_encoder(self.models.ip_adapter_config(name)?.1, observer)?;
            self.ip_adapter(name, observer)?;
        }
        self.unet(observer)?;
        Ok(())
    }

    /// Loads the autoencoder's encoder, for requests with a source.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load).
    pub fn load_encoder(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.vae_encoder(observer).map(|_| ())
    }

    /// Drops networks that others left in the library and that leave too little memory for this run.
    pub(super) fn make_room(&self, prepared: &Prepared) -> Result<()> {
        let Some(available) = crate::device::available_memory(&self.device) else { return Ok(()) };
        let request = &prepared.request;
        let side = request.controls.iter().map(|control| Part::SideNetwork(control.model.clone()));
        let own = [Part::UNet, Part::Vae, Part::Text].into_iter().chain(side);
        let own: Vec<Key> = own.map(|part| self.key(&part)).collect::<Result<_>>()?;
        let needed = prepared.memory.total(prepared.guidance);
        // Its own networks are counted as needed, though they may be loaded already.
        let loaded = self.library.bytes_of(&own);
        self.library.free(needed.saturating_sub(available.saturating_add(loaded)), &own);
        Ok(())
    }

    pub(super) fn key(&self, part: &Part) -> Result<Key> {
        self.models.key(part, self.precision, &self.device)
    }

    pub(super) fn text(&self, observer: &mut dyn Observer) -> Result<Arc<TextModel>> {
        self.get(&Part::Text, observer, |models, Precision { text, .. }, device| {
            self.resident(Component::Text, text, device, |resident| models.rebuild_text(resident))
        })
    }

    pub(super) fn unet(&self, observer: &mut dyn Observer) -> Result<Arc<UNet>> {
        self.get(&Part::UNet, observer, |models, Precision { unet, quantize, .. }, device| {
            self.resident(Component::UNet, unet, device, |resident| {
                models.rebuild_unet(resident, quantize)
            })
        })
    }

    pub(super) fn vae(&self, observer: &mut dyn Observer) -> Result<Arc<Vae>> {
        self.get(&Part::Vae, observer, |models, precision, device| {
            models.vae(precision.vae, device)
        })
    }

    pub(super) fn vae_encoder(&self, observer: &mut dyn Observer) -> Result<Arc<VaeEncoder>> {
        self.get(&Part::VaeEncoder, observer, |models, precision, device| {
            models.vae_encoder(precision.vae, device)
        })
    }

    pub(super) fn i2v_encoder(&self, observer: &mut dyn Observer) -> Result<Arc<I2vEncoder>> {
        self.get(&Part::I2vEncoder, observer, |models, precision, device| {
            models.i2v_encoder(precision, device)
        })
    }

    pub(super) fn side_network(
        &self,
        name: &str,
        observer: &mut dyn Observer,
    ) -> Result<Arc<SideNetwork>> {
        let part = Part::SideNetwork(name.to_owned());
        self.get(&part, observer, |models, precision, device| {
            models.side_network(name, precision, device)
        })
    }

    pub(super) fn image_encoder(
        &self,
        path: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Arc<VisionEncoder>> {
        let part = Part::ImageEncoder(path.to_path_buf());
        self.get(&part, observer, |models, precision, device| {
            models.image_encoder(path, precision.text, device)
        })
    }

    pub(super) fn ip_adapter(
        &self,
        name: &str,
        observer: &mut dyn Observer,
    ) -> Result<Arc<IpAdapter>> {
        let part = Part::IpAdapter(name.to_owned());
        self.get(&part, observer, |models, precision, device| {
            models.ip_adapter(name, precision.text, device)
        })
    }

    pub(super) fn depth(&self, observer: &mut dyn Observer) -> Result<Arc<DepthAnything>> {
        let (part, Precision { text, .. }) = (Part::Depth, self.precision);
        let bytes = self.models.bytes(&part, self.precision);
        self.library.get(self.key(&part)?, bytes, &self.stop, || {
            observer.event(Event::Load { part: self.models.part_name(&part), bytes })?;
            self.models.depth(text, &self.device)
        })
    }

    fn get<T: Any + Send + Sync>(
        &self,
        part: &Part,
        observer: &mut dyn Observer,
        load: impl FnOnce(&Models, Precision, &Device) -> Result<(T, LoadReport)>,
    ) -> Result<Arc<T>> {
        let bytes = self.models.bytes(part, self.precision);
        self.library.get(self.key(part)?, bytes, &self.stop, || {
            observer.event(Event::Load { part: self.models.part_name(part), bytes })?;
            let (network, report) = load(&self.models, self.precision, &self.device)?;
            observer.event(Event::Report { report })?;
            Ok(network)
        })
    }

    /// Loads a network of the weights that are resident and the files. On the CPU layers pack their weights, so nothing
    /// is.
    fn resident<T>(
        &self,
        component: Component,
        dtype: candle_core::DType,
        device: &Device,
        load: impl FnOnce(&mut Resident) -> Result<T>,
    ) -> Result<T> {
        if self.device.is_cpu() || self.residency == super::Residency::Sequential {
            return load(&mut Resident::empty(dtype, device));
        }
        let mut resident = super::lock(&self.resident);
        load(resident.entry(component).or_insert_with(|| Resident::new(dtype, device)))
    }
}
