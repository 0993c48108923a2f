//! Keys of clients: a file of names and SHA-256 hashes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::files::{hex, read_text};
use crate::queue::random;
use crate::{Error, Result};

/// The file of keys. It is read again when it changes, so that a key that was removed opens nothing.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    state: Option<(SystemTime, u64)>,
    keys: Vec<Key>,
}

/// The TOML of a file of keys.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "key")]
    keys: Vec<Key>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    /// Who has it.
    name: String,
    /// The SHA-256 of the key, lowercase hexadecimal.
    sha256: String,
}

impl Keys {
    /// Reads a file of keys.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is not of that form, or has no key.
    pub fn open(path: &Path) -> Result<Self> {
        let keys = parse(path)?;
        if keys.is_empty() {
            return Err(Error::request("api-keys", format!("{} has no key", path.display()))
                .with_hint("`animatelcm keys new NAME` makes one"));
        }
        let read = Mutex::new(Read { state: state(path), keys });
        Ok(Self { path: path.to_path_buf(), read })
    }

    /// The name of a key's owner.
    pub(super) fn owner(&self, key: &str) -> Option<String> {
        let hash = hex(Sha256::new_with_prefix(key));
        let mut read = self.current();
        let (mut found, mut place) = (Choice::from(0), 0_u64);
        // All are compared, each in constant time: how long it takes says nothing.
        for (number, key) in read.keys.iter().enumerate() {
            let is_same = hash.as_bytes().ct_eq(key.sha256.as_bytes());
            place.conditional_assign(&(number as u64), is_same);
            found |= is_same;
        }
        if bool::from(found) { Some(read.keys.swap_remove(place as usize).name) } else { None }
    }

    /// Whether a name still has a key.
    pub(super) fn has(&self, owner: &str) -> bool {
        self.current().keys.iter().any(|key| key.name == owner)
    }

    /// The keys as the file has them now; none if it cannot be read.
    fn current(&self) -> Read {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state(&self.path);
        if read.state != now {
            *read = Read { state: now, keys: parse(&self.path).unwrap_or_default() };
        }
        Read { state: read.state, keys: read.keys.clone() }
    }
}

fn state(path: &Path) -> Option<(SystemTime, u64)> {
    let data = path.metadata().ok()?;
    Some((data.modified().ok()?, data.len()))
}

fn parse(path: &Path) -> Result<Vec<Key>> {
    let text = read_text(path).map_err(|error| Error::unreadable("api-keys", path, &error))?;
    let wrong = |reason: &str| {
        Error::request("api-keys", format!("{}: {}", path.display(), reason.replace('\n', " ")))
    };
    let file: File = toml::from_str(&text).map_err(|error| wrong(error.message()))?;
    let is_hash = |key: &Key| {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        key.sha256.len() == 64 && key.sha256.bytes().all(is_digit)
    };
    if let Some(key) = file.keys.iter().find(|key| key.name.is_empty() || !is_hash(key)) {
        return Err(wrong(&format!("`{}` has no SHA-256 in lowercase hexadecimal", key.name)));
    }
    Ok(file.keys)
}

/// Makes a key of 256 random bits and adds its hash to a file, which is made if it is not there. Returns the key, which
/// is kept nowhere.
///
/// # Errors
///
/// When the name is taken or empty, or the file cannot be read or written.
pub fn add(path: &Path, name: &str) -> Result<String> {
    if name.trim().is_empty() || name.contains(char::is_control) {
        return Err(Error::request("name", "is empty or has control characters"));
    }
    let mut keys = if path.exists() { parse(path)? } else { vec![] };
    if keys.iter().any(|key| key.name == name) {
        let reason = format!("`{name}` has a key in {}", path.display());
        return Err(Error::request("name", reason)
            .with_hint("remove it from the file, or choose another name"));
    }
    let key = format!("alcm_{}", random::<32>()?);
    let sha256 = hex(Sha256::new_with_prefix(&key));
    keys.push(Key { name: name.to_owned(), sha256 });
    let text = toml::to_string(&File { keys })
        .map_err(|error| Error::Encode { format: "toml", reason: error.to_string() })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::file(folder))?;
    let mut draft = tempfile::NamedTempFile::new_in(folder).map_err(Error::file(folder))?;
    std::io::Write::write_all(&mut draft, text.as_bytes()).map_err(Error::file(path))?;
    draft.persist(path).map_err(|error| Error::file(path)(error.error))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let ann = add(&path, "ann").unwrap();
        let bob = add(&path, "bob").unwrap();
        assert_ne!(ann, bob);
        assert_eq!(add(&path, "ann").unwrap_err().kind().exit_code(), 2);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&ann) && text.contains("bob"), "{text}");
        let keys = Keys::open(&path).unwrap();
        assert_eq!(keys.owner(&ann).as_deref(), Some("ann"));
        assert_eq!(keys.owner(&bob).as_deref(), Some("bob"));
        for wrong in ["", "alcm_", &ann[1..], &format!("{ann}0")] {
            assert_eq!(keys.owner(wrong), None, "{wrong}");
        }
        let rest = &text[text.rfind("[[key]]").unwrap()..];
        fs::write(&path, rest).unwrap();
        assert_eq!(keys.owner(&ann), None);
        assert!(!keys.has("ann") && keys.has("bob"));
        fs::remove_file(&path).unwrap();
        assert_eq!(keys.owner(&bob), None);
        assert!(Keys::open(&path).is_err());
    }
}
