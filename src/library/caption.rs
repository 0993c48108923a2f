//! BLIP: the network that describes an image, and its words.

use std::path::Path;

use candle_core::{DType, Device};

use super::configs;
use crate::media::RgbImage;
use crate::models::blip::{Blip, BlipConfig};
use crate::text::word_pieces::WordPieces;
use crate::weights::{Standalone, until};
use crate::{Result, Stop};

/// What messages call the network.
const NAME: &str = "BLIP";

/// A network that describes images.
#[derive(Clone, Debug)]
pub struct Captioner {
    network: Blip,
    words: WordPieces,
}

impl Captioner {
    /// The network in a folder of transformers, or in a file with its `config.json` and `vocab.txt` beside it.
    ///
    /// # Errors
    ///
    /// When it is something else, or its weights do not fit.
    pub fn open(path: &Path, dtype: DType, device: &Device, stop: &Stop) -> Result<Self> {
        const HINT: &str =
            "a model for captions is a folder as of Salesforce/blip-image-captioning-base";
        let (place, config) = configs::of_type::<BlipConfig>(path, "blip", HINT)?;
        let words = WordPieces::read(&place.with_file_name("vocab.txt"))?;
        let network = Standalone::open(NAME, path, BlipConfig::ignored)?;
        let network = network.build(dtype, device, |vb| Blip::new(&config, &until(vb, stop)))?;
        Ok(Self { network, words })
    }

    /// What an image shows, in a few lower-case words.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled) once `stop` is requested.
    pub fn caption(&self, image: &RgbImage, stop: &Stop) -> Result<String> {
        let pixels = self.network.pixels(image, stop)?;
        self.words.text(&self.network.tokens(&pixels, stop)?)
    }
}
