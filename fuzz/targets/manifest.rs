//! Manifests of published models.

use animatelcm::hub::manifest::{Catalog, Entry};

/// Reads an entry, and adds it to those that are built in.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(entry) = Entry::parse(text, "entry.toml") else { return };
    if let Entry::Model(model) = &entry {
        for variant in model.variants.iter().map(String::as_str).map(Some).chain([None]) {
            let _ = model.size_of(variant);
        }
    }
    serde_json::to_string(&entry).expect("an entry can be shown");
    let name = entry.name().to_owned();
    let mut catalog = Catalog::embedded().expect("the entries built in");
    catalog.insert(entry);
    let _ = catalog.parts(&name);
    catalog.find(&name).expect("the entry to be there");
}
