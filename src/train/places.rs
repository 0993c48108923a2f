//! Files of a training run.

use std::fs::{File, TryLockError};
use std::path::PathBuf;

use crate::{Error, Result};

/// File locations of a training run.
#[derive(Clone, Debug)]
pub struct Places {
    /// Output folder.
    pub out: PathBuf,
    /// The diffusers folder used by later stages.
    pub base: PathBuf,
}

impl Places {
    /// Locations in `out`, with the base model in `out/base`.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        let out = out.into();
        Self { base: out.join("base"), out }
    }

    /// Path of the consistency LoRA of single frames.
    pub fn lora(&self) -> PathBuf {
        self.out.join("lcm_lora.safetensors")
    }

    /// Path of the teacher's motion modules, trained on clips.
    pub fn motion(&self) -> PathBuf {
        self.out.join("motion_teacher.safetensors")
    }

    /// Path of the motion modules of the consistency model.
    pub fn lcm(&self) -> PathBuf {
        self.out.join("motion_lcm.safetensors")
    }

    /// Path of the motion modules that start from an image, with their encoder.
    pub fn i2v(&self) -> PathBuf {
        self.out.join("motion_i2v.safetensors")
    }

    /// Folder of the adapted control network.
    pub fn adapted(&self) -> PathBuf {
        self.out.join("adapted")
    }

    /// Locks the folder for one training run, until the lock is dropped or the program ends.
    ///
    /// # Errors
    ///
    /// When another training run holds the lock.
    pub fn lock(&self) -> Result<Lock> {
        std::fs::create_dir_all(&self.out).map_err(Error::file(&self.out))?;
        let path = self.out.join(".lock");
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(Error::file(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let reason = format!("another training runs in {}", self.out.display());
                Err(Error::request("out", reason)
                    .with_hint("wait for its end, or name another folder"))
            }
            // File systems without locks are used unlocked.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Lock { _file: file }),
        }
    }

    /// Path of the LoRA of a joint distillation.
    pub fn joint_lora(&self) -> PathBuf {
        self.out.join("joint_lora.safetensors")
    }
}

/// Lock on an output folder, see [`Places::lock`].
#[derive(Debug)]
pub struct Lock {
    _file: File,
}
