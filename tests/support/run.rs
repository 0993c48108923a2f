//! A request to a clip in one call, with tensors that go in and come out.

use std::collections::BTreeMap;

use animatelcm::media::FrameSink;
use animatelcm::pipeline::{Inputs, Observer, Pipeline, Prepared, Recorder};
use animatelcm::request::Request;
use animatelcm::{Result, Stop};
use candle_core::Tensor;

/// A value with some of its fields changed.
pub(crate) trait With: Sized {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl With for Request {}

/// Tensors of a run, in the layout of files.
#[derive(Debug, Default)]
pub(crate) struct Tensors {
    pub(crate) latents: Option<Tensor>,
    pub(crate) noise: Vec<Tensor>,
    pub(crate) hint_noise: BTreeMap<String, Tensor>,
    pub(crate) source_noise: Option<Tensor>,
    /// If present, receives what a [`Recorder`] keeps.
    pub(crate) recorded: Option<BTreeMap<String, Tensor>>,
}

/// Whole runs of a pipeline; inputs are read from the paths in the request.
pub(crate) trait Runs {
    fn prepared(&self, request: &Request) -> Result<Prepared>;

    fn run(
        &mut self,
        request: &Request,
        tensors: &mut Tensors,
        observer: &mut dyn Observer,
        sink: &mut dyn FrameSink,
    ) -> Result<()>;
}

impl Runs for Pipeline {
    fn prepared(&self, request: &Request) -> Result<Prepared> {
        self.prepare(request, &Inputs::read(request, &Stop::default())?)
    }

    fn run(
        &mut self,
        request: &Request,
        tensors: &mut Tensors,
        observer: &mut dyn Observer,
        sink: &mut dyn FrameSink,
    ) -> Result<()> {
        let mut inputs = Inputs::read(request, &Stop::default())?;
        inputs.latents.clone_from(&tensors.latents);
        inputs.noise.clone_from(&tensors.noise);
        inputs.hint_noise.clone_from(&tensors.hint_noise);
        inputs.source_noise.clone_from(&tensors.source_noise);
        let prepared = self.prepare(request, &inputs)?;
        let Some(recorded) = &mut tensors.recorded else {
            return self.generate(&prepared, observer, sink);
        };
        let mut recorder = Recorder::new(observer);
        self.generate(&prepared, &mut recorder, sink)?;
        *recorded = recorder.tensors;
        Ok(())
    }
}
