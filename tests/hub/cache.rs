//! The cache on disk: found, checked, mended, removed, listed.

use std::fs;

use animatelcm::ErrorKind;
use animatelcm::hub::manifest::Entry;
use animatelcm::hub::{Authority, Checked, Hub, Settings, State};

use crate::support::hub::{Bench, CONFIG, go_on, manifest, pull, sound_manifest, weights};
use crate::support::hub_server::{COMMIT, Fault, sha256};

#[test]
fn what_a_killed_pull_has_left_of_its_record_is_removed() {
    let bench = Bench::published();
    pull(&bench.client()).unwrap();
    let draft = bench.repo("owner/model").join("animatelcm.json.part");
    fs::write(&draft, "{").unwrap();
    // Not while somebody writes it.
    let lock = fs::File::create(bench.repo("owner/model").join("animatelcm.lock")).unwrap();
    lock.lock().unwrap();
    pull(&bench.client()).unwrap();
    assert!(draft.exists());
    drop(lock);
    pull(&bench.client()).unwrap();
    assert!(!draft.exists());
}

#[test]
fn a_ref_is_replaced_at_once_and_only_if_it_changes() {
    let bench = Bench::published();
    pull(&bench.client()).unwrap();
    let refs = bench.repo("owner/model").join("refs");
    let name = fs::read_dir(&refs).unwrap().next().unwrap().unwrap().file_name();
    let commit = fs::read_to_string(refs.join(&name)).unwrap();
    for old in ["0000", commit.as_str()] {
        fs::remove_dir_all(bench.repo("owner/model")).unwrap();
        fs::create_dir_all(&refs).unwrap();
        // What is written in place changes both names, what is renamed one.
        let witness = refs.parent().unwrap().join("witness");
        fs::write(&witness, old).unwrap();
        fs::hard_link(&witness, refs.join(&name)).unwrap();
        pull(&bench.client()).unwrap();
        assert_eq!(fs::read_to_string(refs.join(&name)).unwrap(), commit);
        assert_eq!(fs::read_to_string(&witness).unwrap(), old);
        assert_eq!(fs::read_dir(&refs).unwrap().count(), 1);
    }
    // A draft of a killed pull goes like that of the record.
    let draft = bench.repo("owner/model").join("animatelcm.ref.part");
    fs::write(&draft, "c0").unwrap();
    pull(&bench.client()).unwrap();
    assert!(!draft.exists());
}

#[test]
fn offline_means_that_nothing_is_asked() {
    let bench = Bench::published();
    let mut settings = bench.settings();
    settings.offline = true;
    let hub = Bench::client_of(settings, sound_manifest());
    for (error, hint) in [
        (pull(&hub).unwrap_err(), "without --offline"),
        (hub.resolve("tiny", None).unwrap_err(), "animatelcm models pull tiny"),
    ] {
        assert_eq!(error.kind().exit_code(), 3);
        assert_eq!(error.to_string(), "tiny: not downloaded, and this is offline");
        assert!(error.hint().unwrap().starts_with(hint), "{error:?}");
    }
    assert!(bench.server.asked().is_empty());
}

#[test]
fn a_damaged_file_is_found_by_verify_and_mended_by_pull() {
    let bench = Bench::published();
    let hub = bench.client();
    let weights_file = pull(&hub).unwrap().join("weights.safetensors");
    let mut damaged = weights();
    damaged[123_456] ^= 1;
    fs::write(fs::canonicalize(&weights_file).unwrap(), damaged).unwrap();
    let checked = hub.verify("tiny", None, &mut go_on).unwrap();
    assert_eq!(checked.iter().filter(|file| !file.is_sound()).count(), 1);
    assert_eq!(checked[1].authority, Authority::Published);
    pull(&hub).unwrap();
    assert_eq!(fs::read(&weights_file).unwrap(), weights());
}

#[test]
#[cfg(unix)]
fn files_that_another_program_downloaded_are_found() {
    // As Python's huggingface_hub leaves them: a branch, relative links, no record of ours.
    let bench = Bench::new();
    let repo = bench.repo("other/copy");
    let commit = "0123456789012345678901234567890123456789";
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(snapshot.join("vae")).unwrap();
    fs::create_dir_all(repo.join("blobs")).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), commit).unwrap();
    fs::write(repo.join("blobs/abc"), CONFIG).unwrap();
    fs::write(repo.join("blobs").join(sha256(&weights())), weights()).unwrap();
    std::os::unix::fs::symlink("../../../blobs/abc", snapshot.join("vae/config.json")).unwrap();
    let target = format!("../../blobs/{}", sha256(&weights()));
    std::os::unix::fs::symlink(target, snapshot.join("weights.safetensors")).unwrap();
    let found = bench.client().resolve("tiny", None).unwrap();
    assert_eq!(found.parts[0].folder, snapshot);
    assert_eq!(found.parts[0].commit, commit);
    assert!(bench.client().verify("tiny", None, &mut go_on).unwrap().iter().all(Checked::is_sound));

    // The same name with other bytes of the same size is not taken for it.
    let other = manifest(COMMIT, "\"other/copy\"", &sha256(CONFIG), &sha256(b"other"));
    assert!(Bench::client_of(bench.settings(), other).resolve("tiny", None).is_err());
}

#[test]
fn removing_a_model_leaves_the_others_of_its_repository() {
    let bench = Bench::published();
    bench.server.large("owner/model", "lora.safetensors", b"a lora");
    let mut hub = bench.client();
    let lora = format!(
        "name = \"lora\"\nkind = \"lora\"\ntitle = \"A test\"\nrepo = \"owner/model\"\n\
         revision = \"main\"\n[licence]\nname = \"MIT\"\nurl = \"u\"\n\
         [[files]]\npath = \"lora.safetensors\"\nsha256 = \"{}\"\n",
        sha256(b"a lora")
    );
    hub.insert(Entry::parse(&lora, "lora.toml").unwrap());
    pull(&hub).unwrap();
    let lora = hub.pull("lora", None, &mut go_on).unwrap().parts.remove(0);
    assert_eq!(lora.path(), lora.folder.join("lora.safetensors"));

    assert_eq!(hub.remove("tiny").unwrap(), (2, 800_000 + CONFIG.len() as u64));
    assert!(hub.resolve("tiny", None).is_err());
    assert_eq!(fs::read(lora.path()).unwrap(), b"a lora");
    assert!(!bench.repo("owner/model").join("blobs").join(sha256(&weights())).exists());
    assert_eq!(hub.remove("tiny").unwrap_err().kind(), ErrorKind::Weights);

    hub.remove("lora").unwrap();
    assert!(!bench.repo("owner/model").exists());
}

#[test]
fn removing_a_model_takes_its_partial_download_along() {
    let bench = Bench::published();
    bench.server.fail(&[Fault::Cut(usize::MAX), Fault::Cut(300_000)]);
    pull(&bench.client()).unwrap_err();
    assert!(bench.partial().exists());
    bench.client().remove("tiny").unwrap();
    assert!(!bench.repo("owner/model").exists());
}

#[test]
fn the_list_tells_whole_from_half_from_nothing() {
    let bench = Bench::published();
    let hub = bench.client();
    let state = |hub: &Hub| {
        let list = hub.list().unwrap();
        let tiny = list.iter().find(|listing| listing.name == "tiny").unwrap();
        (tiny.state, tiny.bytes)
    };
    assert_eq!(state(&hub), (State::Absent, 0));
    bench.server.fail(&[Fault::Cut(usize::MAX), Fault::Cut(300_000)]);
    pull(&hub).unwrap_err();
    assert_eq!(state(&hub), (State::Partial, CONFIG.len() as u64));
    pull(&hub).unwrap();
    assert_eq!(state(&hub), (State::Installed, 800_000 + CONFIG.len() as u64));
}

#[test]
fn a_variant_is_pulled_and_found_by_its_name() {
    let bench = Bench::new();
    for path in ["half.bin", "full.bin", "config.json"] {
        bench.server.large("owner/model", path, path.as_bytes());
    }
    let file = |path: &str, variant: &str| {
        let hash = sha256(path.as_bytes());
        format!("[[files]]\npath = \"{path}\"\n{variant}\nsha256 = \"{hash}\"\n")
    };
    let text = format!(
        "name = \"base\"\nkind = \"base\"\ntitle = \"A test\"\nrepo = \"owner/model\"\n\
         revision = \"main\"\nvariants = [\"fp16\", \"fp32\"]\n\
         [licence]\nname = \"MIT\"\nurl = \"u\"\n{}{}{}",
        file("config.json", ""),
        file("half.bin", "variant = \"fp16\""),
        file("full.bin", "variant = \"fp32\""),
    );
    let entry = Entry::parse(&text, "base.toml").unwrap();
    let mut hub = Bench::client_of(bench.settings(), entry);
    let preset = "name = \"set\"\nkind = \"preset\"\ntitle = \"t\"\nparts = [\"base\", \"tiny\"]";
    hub.insert(Entry::parse(preset, "set.toml").unwrap());
    hub.insert(sound_manifest());
    bench.publish("owner/model");

    let full = hub.pull("set", Some("fp32"), &mut go_on).unwrap();
    assert_eq!(full.parts[0].variant.as_deref(), Some("fp32"));
    assert_eq!(full.parts[1].variant, None);
    assert!(full.parts[0].folder.join("full.bin").exists());
    assert!(!full.parts[0].folder.join("half.bin").exists());
    // Nothing was asked for: what is here is taken.
    assert_eq!(hub.resolve("set", None).unwrap(), full);
    assert!(hub.resolve("set", Some("fp16")).is_err());
    let error = hub.resolve("set", Some("fp8")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request, "{error}");
}

#[test]
fn a_preset_brings_its_settings() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(Settings::new(cache.path())).unwrap();
    let Entry::Preset(preset) = hub.catalog().find("animatelcm").unwrap() else { panic!() };
    assert_eq!(preset.defaults.steps, Some(4));
    assert_eq!(preset.defaults.original_inference_steps, Some(100));
    let error = hub.resolve("animatelcm", None).unwrap_err();
    assert_eq!(error.to_string(), "sd15: not downloaded");
    assert_eq!(error.hint().as_deref(), Some("animatelcm models pull animatelcm"));
    assert_eq!(hub.remove("animatelcm").unwrap_err().kind(), ErrorKind::Request);
}
