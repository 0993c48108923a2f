//! Models by name: downloads from a hub on loopback, and what is found without any network.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use animatelcm::hub::manifest::{Entry, Kind};
use animatelcm::hub::{Authority, Checked, Event, Hub, Settings, State};
use animatelcm::{Error, ErrorKind};
use tempfile::TempDir;

use crate::support::hub_server::{Asked, COMMIT, Fault, HubServer, sha256};

const CONFIG: &[u8] = b"{\"sample_size\": 64}\n";

fn weights() -> Vec<u8> {
    (0..200_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A model of a small file in a folder and a large one, as `owner/model` publishes it.
fn manifest(revision: &str, mirrors: &str, config: &str, weights: &str) -> Entry {
    let text = format!(
        "name = \"tiny\"\nkind = \"vae\"\ntitle = \"A test\"\nrepo = \"owner/model\"\n\
         revision = \"{revision}\"\nmirrors = [{mirrors}]\n\
         [licence]\nname = \"MIT\"\nurl = \"https://example.org\"\n\
         [[files]]\npath = \"vae/config.json\"\nsha256 = \"{config}\"\n\
         [[files]]\npath = \"weights.safetensors\"\nsize = 800000\nsha256 = \"{weights}\"\n"
    );
    Entry::parse(&text, "tiny.toml").unwrap()
}

fn sound_manifest() -> Entry {
    manifest(COMMIT, "\"other/copy\"", &sha256(CONFIG), &sha256(&weights()))
}

/// A hub on loopback, an empty cache, and a client that knows `tiny`.
struct Bench {
    server: HubServer,
    cache: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { server: HubServer::start(), cache: tempfile::tempdir().unwrap() }
    }

    fn published() -> Self {
        let bench = Self::new();
        bench.publish("owner/model");
        bench
    }

    fn publish(&self, repo: &str) {
        self.server.small(repo, "vae/config.json", CONFIG);
        self.server.large(repo, "weights.safetensors", &weights());
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.cache.path());
        settings.endpoint = self.server.endpoint();
        settings.retries = 0;
        settings
    }

    fn client(&self) -> Hub {
        Self::client_of(self.settings(), sound_manifest())
    }

    fn client_of(settings: Settings, entry: Entry) -> Hub {
        let mut hub = Hub::new(settings).unwrap();
        hub.insert(entry);
        hub
    }

    fn repo(&self, name: &str) -> PathBuf {
        self.cache.path().join(format!("models--{}", name.replace('/', "--")))
    }

    fn partial(&self) -> PathBuf {
        self.repo("owner/model").join("blobs").join(format!("{}.part", sha256(&weights())))
    }
}

fn go_on(_: &Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn pull(hub: &Hub) -> animatelcm::Result<PathBuf> {
    hub.pull("tiny", None, &mut go_on).map(|bundle| bundle.parts[0].path().to_owned())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).into_iter().flatten() {
        let path = item.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_pulled_model_is_in_the_ordinary_cache_and_found_without_a_network() {
    let bench = Bench::published();
    let mut seen = Vec::new();
    let bundle = bench
        .client()
        .pull("tiny", None, &mut |event| {
            if let Event::Done { file } = event {
                seen.push((*file).to_owned());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, ["vae/config.json", "weights.safetensors"]);
    let snapshot = bench.repo("owner/model").join("snapshots").join(COMMIT);
    assert_eq!(bundle.parts[0].path(), snapshot);
    assert_eq!(fs::read(snapshot.join("vae/config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read(snapshot.join("weights.safetensors")).unwrap(), weights());
    assert!(bench.repo("owner/model").join("blobs").join(sha256(&weights())).is_file());

    let mut offline = bench.settings();
    offline.offline = true;
    offline.endpoint = "http://127.0.0.1:9".to_owned();
    let hub = Bench::client_of(offline, sound_manifest());
    assert_eq!(hub.resolve("tiny", None).unwrap(), bundle);
    assert_eq!(hub.pull("tiny", None, &mut go_on).unwrap(), bundle);
    assert_eq!(hub.resolve("tiny", None).unwrap().part(Kind::Vae), Some(&bundle.parts[0]));
}

#[test]
fn a_second_pull_asks_for_nothing() {
    let bench = Bench::published();
    pull(&bench.client()).unwrap();
    let asked = bench.server.asked();
    pull(&bench.client()).unwrap();
    assert_eq!(bench.server.asked(), asked);
}

#[test]
fn a_cut_transfer_is_kept_and_the_next_pull_asks_for_the_rest() {
    let bench = Bench::published();
    // The first transfer is the small file's.
    bench.server.fail(&[Fault::Cut(usize::MAX), Fault::Cut(300_000)]);
    let error = pull(&bench.client()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
    assert!(error.hint().unwrap().contains("pull again"), "{error}");
    assert_eq!(fs::metadata(bench.partial()).unwrap().len(), 300_000);
    assert!(bench.client().resolve("tiny", None).is_err());

    let path = pull(&bench.client()).unwrap();
    let last = bench.server.asked().pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=300000-"));
    assert_eq!(fs::read(path.join("weights.safetensors")).unwrap(), weights());
    assert!(!bench.partial().exists());
}

#[test]
fn a_transfer_that_is_cut_again_and_again_is_taken_up_again_and_again() {
    let bench = Bench::published();
    bench.server.fail(&[
        Fault::Cut(usize::MAX),
        Fault::Cut(300_000),
        Fault::Cut(200_000),
        Fault::Cut(100_000),
    ]);
    let mut settings = bench.settings();
    // Attempts that bring bytes do not count.
    settings.retries = 1;
    let mut retries = 0;
    let path = Bench::client_of(settings, sound_manifest())
        .pull("tiny", None, &mut |event| {
            retries += usize::from(matches!(event, Event::Retry { .. }));
            ControlFlow::Continue(())
        })
        .unwrap()
        .parts[0]
        .path()
        .join("weights.safetensors");
    assert_eq!(fs::read(path).unwrap(), weights());
    assert!(retries >= 3, "{retries}");
    let ranges: Vec<_> = bench.server.asked().into_iter().filter_map(|a| a.range).collect();
    for range in ["bytes=300000-", "bytes=500000-", "bytes=600000-"] {
        assert!(ranges.iter().any(|r| r == range), "{range}: {ranges:?}");
    }
}

#[test]
fn a_transfer_that_never_gets_anywhere_is_given_up() {
    let bench = Bench::published();
    bench.server.fail(&[Fault::Cut(0); 8]);
    let mut settings = bench.settings();
    settings.retries = 1;
    let error = pull(&Bench::client_of(settings, sound_manifest())).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Weights), "{error}");
    let transfers = bench.server.asked().iter().filter(|a| a.is_transfer()).count();
    assert_eq!(transfers, 2);
}

#[test]
fn a_server_that_ignores_ranges_costs_time_but_not_the_file() {
    let bench = Bench::published();
    bench.server.fail(&[Fault::Cut(usize::MAX), Fault::Cut(300_000), Fault::IgnoresRange]);
    let mut settings = bench.settings();
    settings.retries = 2;
    let path = pull(&Bench::client_of(settings, sound_manifest())).unwrap();
    assert_eq!(fs::read(path.join("weights.safetensors")).unwrap(), weights());
}

#[test]
fn a_partial_file_that_is_complete_is_finished() {
    let bench = Bench::published();
    fs::create_dir_all(bench.partial().parent().unwrap()).unwrap();
    fs::write(bench.partial(), weights()).unwrap();
    let path = pull(&bench.client()).unwrap();
    assert_eq!(fs::read(path.join("weights.safetensors")).unwrap(), weights());
    let asked = bench.server.asked();
    let transfers = asked.iter().filter(|asked| asked.is_transfer()).count();
    assert_eq!(transfers, 1, "only the small file's: {asked:?}");
}

#[test]
fn a_partial_file_of_other_bytes_is_noticed_and_removed() {
    let bench = Bench::published();
    fs::create_dir_all(bench.partial().parent().unwrap()).unwrap();
    fs::write(bench.partial(), vec![7; 1000]).unwrap();
    let error = pull(&bench.client()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert_eq!(
        fs::read(pull(&bench.client()).unwrap().join("weights.safetensors")).unwrap(),
        weights()
    );
}

#[test]
fn a_file_with_the_wrong_hash_is_refused_with_both_hashes_and_removed() {
    let bench = Bench::published();
    let published = sha256(b"something else");
    let entry = manifest(COMMIT, "", &published, &sha256(&weights()));
    let error = pull(&Bench::client_of(bench.settings(), entry)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let message = error.to_string();
    assert!(message.contains(&published) && message.contains(&sha256(CONFIG)), "{message}");
    assert!(message.starts_with("owner/model/vae/config.json: "), "{message}");
    let left = files_below(&bench.repo("owner/model").join("snapshots"));
    assert!(left.is_empty(), "{left:?}");
    let blob = bench.repo("owner/model").join("blobs").join(&sha256(CONFIG)[..40]);
    assert!(!blob.exists());
}

#[test]
fn a_file_whose_announced_hash_is_wrong_is_not_even_fetched() {
    let bench = Bench::published();
    let entry = manifest(COMMIT, "", &sha256(CONFIG), &sha256(b"something else"));
    let error = pull(&Bench::client_of(bench.settings(), entry)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let asked = bench.server.asked();
    let transfers = asked.iter().filter(|asked| asked.is_transfer()).count();
    assert_eq!(transfers, 1, "only the small file's: {asked:?}");
}

#[test]
fn a_file_of_another_size_is_refused_with_both_sizes() {
    let bench = Bench::published();
    bench.server.large("owner/model", "weights.safetensors", &weights()[1..]);
    let error = pull(&bench.client()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let message = error.to_string();
    assert!(message.contains("799999") && message.contains("800000"), "{message}");
}

#[test]
fn another_commit_than_the_pinned_one_is_refused() {
    let bench = Bench::published();
    let pinned = COMMIT.replace('c', "d");
    let entry = manifest(&pinned, "", &sha256(CONFIG), &sha256(&weights()));
    let error = pull(&Bench::client_of(bench.settings(), entry)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[test]
fn names_from_the_server_do_not_leave_the_cache() {
    let long = "a".repeat(5000);
    for etag in ["../../../evil", "/evil", "a/../../evil", "", ".", "a.part", "a.lock", &long] {
        let bench = Bench::published();
        bench.server.publish("owner/model", "vae/config.json", CONFIG, etag, false);
        let error = pull(&bench.client()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{etag}: {error}");
        assert!(files_below(bench.cache.path()).is_empty(), "{etag}");
    }
}

#[test]
fn a_vanished_repository_is_replaced_by_its_mirror() {
    for status in [404, 401] {
        let bench = Bench::new();
        bench.server.answer("owner/model", status);
        bench.publish("other/copy");
        let mut mirrors = Vec::new();
        let bundle = bench
            .client()
            .pull("tiny", None, &mut |event| {
                if let Event::Mirror { repo, .. } = event {
                    mirrors.push((*repo).to_owned());
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(mirrors, ["other/copy"]);
        assert_eq!(bundle.parts[0].repo, "other/copy");
        // Found again without asking, although the mirror is not pinned.
        let asked = bench.server.asked().len();
        assert_eq!(bench.client().resolve("tiny", None).unwrap(), bundle);
        assert_eq!(bench.server.asked().len(), asked);
    }
}

#[test]
fn a_mirror_that_serves_something_else_is_refused() {
    let bench = Bench::new();
    bench.server.small("other/copy", "vae/config.json", b"{\"sample_size\": 65}\n");
    let error = pull(&bench.client()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[test]
fn a_file_that_nobody_has_is_missing_and_every_repository_is_named() {
    let bench = Bench::new();
    let error = pull(&bench.client()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights);
    assert_eq!(error.kind().exit_code(), 3);
    assert_eq!(
        error.to_string(),
        "tiny: `owner/model` has no `vae/config.json`; `other/copy` has no `vae/config.json`"
    );
}

#[test]
fn a_closed_repository_is_answered_with_a_hint_about_the_token() {
    let bench = Bench::published();
    for status in [401, 403] {
        bench.server.answer("owner/model", status);
        let error = pull(&bench.client()).unwrap_err();
        assert_eq!(error.kind().exit_code(), 3);
        assert!(error.to_string().contains(&format!("`owner/model` answers {status}")), "{error}");
        let hint = error.hint().unwrap().into_owned();
        assert!(hint.contains("set HF_TOKEN") && hint.contains("accept the licence"), "{hint}");
    }
}

#[test]
fn the_token_is_sent_to_the_hub() {
    let bench = Bench::published();
    let mut settings = bench.settings();
    settings.token = Some("hf_test".to_owned());
    pull(&Bench::client_of(settings, sound_manifest())).unwrap();
    let asked = bench.server.asked();
    assert_eq!(asked[0].token.as_deref(), Some("Bearer hf_test"));
    // Without one, none is sent, not even one that lies beside the cache.
    let bench = Bench::published();
    let hub = bench.cache.path().join("hub");
    fs::write(bench.cache.path().join("token"), "hf_stray").unwrap();
    let mut settings = bench.settings();
    settings.cache = hub;
    pull(&Bench::client_of(settings, sound_manifest())).unwrap();
    assert!(bench.server.asked().iter().all(|asked| asked.token.is_none()));
}

/// Pulls with a token from a hub that keeps large files at `place`.
fn pull_from_elsewhere(place: &HubServer, silent: bool) -> Bench {
    let bench = Bench::published();
    place.large("owner/model", "weights.safetensors", &weights());
    bench.server.keep_elsewhere(&place.endpoint(), silent);
    let mut settings = bench.settings();
    settings.token = Some("hf_test".to_owned());
    let path = pull(&Bench::client_of(settings, sound_manifest())).unwrap();
    assert_eq!(fs::read(path.join("weights.safetensors")).unwrap(), weights());
    bench
}

#[test]
fn the_token_is_for_the_hub_alone() {
    // Another host, and another port of the same one; asked for the size as well, or for contents only.
    for host in ["127.0.0.2", "127.0.0.1"] {
        for silent in [false, true] {
            let place = HubServer::start_at(host);
            let bench = pull_from_elsewhere(&place, silent);
            let seen = place.asked();
            assert_eq!(seen.len(), if silent { 2 } else { 1 }, "{host} {silent}: {seen:?}");
            assert!(seen.iter().all(|asked| asked.token.is_none()), "{host} {silent}: {seen:?}");
            let asked = bench.server.asked();
            assert!(asked.iter().all(|asked| asked.token.is_some()), "{host} {silent}: {asked:?}");
        }
    }
    // The hub itself under its own address is no stranger.
    let bench = Bench::published();
    let mut settings = bench.settings();
    settings.token = Some("hf_test".to_owned());
    pull(&Bench::client_of(settings, sound_manifest())).unwrap();
    assert!(bench.server.asked().iter().all(|asked| asked.token.is_some()));
}

#[test]
fn a_token_that_was_left_behind_does_not_come_back() {
    // The hub leads to a stranger, and that one back to the hub.
    let (bench, stranger) = (Bench::published(), HubServer::start_at("127.0.0.2"));
    let back = format!("{}/cdn/owner/model/weights.safetensors", bench.server.endpoint());
    stranger.redirect(Some(&back));
    bench.server.keep_elsewhere(&stranger.endpoint(), true);
    let mut settings = bench.settings();
    settings.token = Some("hf_test".to_owned());
    pull(&Bench::client_of(settings, sound_manifest())).unwrap();
    assert!(stranger.asked().iter().all(|asked| asked.token.is_none()));
    for asked in bench.server.asked() {
        assert_eq!(asked.token.is_none(), asked.path.starts_with("/cdn/"), "{asked:?}");
    }
}

#[test]
fn redirects_end() {
    for (location, words, requests) in [
        (Some("/again?%"), "redirects more than 10 times", 11),
        (Some("?%"), "redirects more than 10 times", 11),
        (None, "redirects without saying where to", 1),
        (Some(""), "redirects without saying where to", 1),
        (Some("file:///etc/passwd"), "not a web address", 1),
        (Some("https://"), "not a web address", 1),
    ] {
        let bench = Bench::new();
        bench.server.redirect(location);
        let entry = manifest(COMMIT, "", &sha256(CONFIG), &sha256(&weights()));
        let error = pull(&Bench::client_of(bench.settings(), entry)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights, "{location:?}: {error}");
        assert!(error.to_string().contains(words), "{location:?}: {error}");
        assert_eq!(bench.server.asked().len(), requests, "{location:?}");
    }
}

#[test]
fn no_more_bytes_are_taken_than_were_announced() {
    for fault in [Fault::Endless, Fault::Longer] {
        let bench = Bench::published();
        bench.server.fail(&[Fault::Cut(usize::MAX), fault]);
        let mut most = 0;
        let error = bench
            .client()
            .pull("tiny", None, &mut |event| {
                if let Event::Download { done, .. } = event {
                    most = most.max(*done);
                }
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{fault:?}: {error}");
        let message = error.to_string();
        assert!(message.starts_with("owner/model/weights.safetensors: "), "{fault:?}: {message}");
        assert!(message.contains("more bytes than it announced"), "{fault:?}: {message}");
        assert!(most <= 800_000, "{fault:?}: {most}");
        assert!(!bench.partial().exists(), "{fault:?}");
        pull(&bench.client()).unwrap();
    }
}

#[test]
fn a_compressed_body_is_refused() {
    let bench = Bench::published();
    bench.server.fail(&[Fault::Cut(usize::MAX), Fault::Compressed]);
    let error = pull(&bench.client()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
    assert!(error.to_string().contains("another encoding"), "{error}");
    let asked = bench.server.asked();
    assert!(asked.iter().all(|a| a.encodings.as_deref() == Some("identity")), "{asked:?}");
}

#[test]
fn a_range_that_was_not_asked_for_is_refused() {
    let bench = Bench::published();
    bench.server.fail(&[Fault::Cut(usize::MAX), Fault::Cut(300_000), Fault::Shifted]);
    let mut settings = bench.settings();
    settings.retries = 1;
    let error = pull(&Bench::client_of(settings, sound_manifest())).unwrap_err();
    assert!(error.to_string().contains("another range"), "{error}");
    // What had arrived before is still good.
    assert_eq!(fs::metadata(bench.partial()).unwrap().len(), 300_000);
    pull(&bench.client()).unwrap();
}

#[test]
fn a_server_that_begins_anew_each_time_is_given_up() {
    let bench = Bench::published();
    let mut faults = vec![Fault::Cut(usize::MAX)];
    // It never gets beyond the second attempt.
    faults.extend([Fault::Cut(300_000), Fault::IgnoresRangeUntil(200_000)]);
    faults.extend([Fault::IgnoresRangeUntil(300_000), Fault::IgnoresRangeUntil(100_000)]);
    bench.server.fail(&faults);
    let mut settings = bench.settings();
    settings.retries = 1;
    let error = pull(&Bench::client_of(settings, sound_manifest())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
    let asked = bench.server.asked();
    let large = |asked: &&Asked| asked.is_transfer() && asked.path.starts_with("/cdn/");
    assert_eq!(asked.iter().filter(large).count(), 3, "{asked:?}");
}

#[test]
fn a_file_of_no_bytes_is_a_file() {
    let bench = Bench::published();
    bench.server.small("owner/model", "vae/config.json", b"");
    let entry = manifest(COMMIT, "", &sha256(b""), &sha256(&weights()));
    let path = pull(&Bench::client_of(bench.settings(), entry)).unwrap();
    assert_eq!(fs::read(path.join("vae/config.json")).unwrap(), b"");
}

#[test]
fn two_pulls_at_once_both_succeed_and_share_the_transfer() {
    let bench = Bench::published();
    bench.server.slow_down();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..2).map(|_| scope.spawn(|| pull(&bench.client()))).collect();
        for pulled in pulls {
            let path = pulled.join().unwrap().unwrap();
            assert_eq!(fs::read(path.join("weights.safetensors")).unwrap(), weights());
        }
    });
    let asked = bench.server.asked();
    let large = |asked: &&Asked| asked.is_transfer() && asked.path.starts_with("/cdn/");
    assert_eq!(asked.iter().filter(large).count(), 1, "{asked:?}");
}

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
    for error in [pull(&hub).unwrap_err(), hub.resolve("tiny", None).unwrap_err()] {
        assert_eq!(error.kind().exit_code(), 3);
        assert_eq!(error.to_string(), "tiny: not downloaded, and this is offline");
        assert_eq!(error.hint().as_deref(), Some("animatelcm models pull tiny"));
    }
    assert!(bench.server.asked().is_empty());
}

#[test]
fn a_hub_that_is_not_there_is_one_error() {
    let bench = Bench::new();
    let mut settings = bench.settings();
    settings.endpoint = "http://127.0.0.1:1".to_owned();
    settings.retries = 4;
    let error = pull(&Bench::client_of(settings, sound_manifest())).unwrap_err();
    assert_eq!(error.kind().exit_code(), 3);
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[test]
fn an_interrupted_pull_goes_on_where_it_stopped() {
    let bench = Bench::published();
    bench.server.slow_down();
    let error = bench
        .client()
        .pull("tiny", None, &mut |event| match event {
            Event::Download { file: "weights.safetensors", done: 100_000.., .. } => {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    let kept = fs::metadata(bench.partial()).unwrap().len();
    assert!((100_000..800_000).contains(&kept), "{kept}");
    // The lock is free again, in this very process.
    let path = pull(&bench.client()).unwrap();
    assert_eq!(fs::read(path.join("weights.safetensors")).unwrap(), weights());
    let last = bench.server.asked().pop().unwrap().range.unwrap();
    assert_eq!(last, format!("bytes={kept}-"));
}

#[test]
fn a_transfer_that_stands_still_is_given_up() {
    let bench = Bench::published();
    bench.server.fail(&[Fault::Stalls(10)]);
    let mut settings = bench.settings();
    settings.patience = Duration::from_millis(300);
    let error = pull(&Bench::client_of(settings, sound_manifest())).unwrap_err();
    assert_eq!(error.kind().exit_code(), 3);
    assert!(error.to_string().contains("nothing arrived for"), "{error}");
}

#[test]
fn an_unknown_hash_is_recorded_at_the_first_pull() {
    let bench = Bench::published();
    let unknown = "recorded-at-first-pull";
    let hub = Bench::client_of(bench.settings(), manifest(COMMIT, "", unknown, unknown));
    let path = pull(&hub).unwrap();
    for file in hub.verify("tiny", None, &mut go_on).unwrap() {
        assert_eq!(file.authority, Authority::Recorded);
        assert!(file.is_sound());
    }
    // The small file's etag is not its hash: only the record knows it.
    fs::write(path.join("vae/config.json"), b"{\"sample_size\": 32}\n").unwrap();
    let wrong: Vec<_> = hub.verify("tiny", None, &mut go_on).unwrap();
    assert!(!wrong[0].is_sound());
    assert_eq!(wrong[0].expected.as_deref(), Some(&*sha256(CONFIG)));
    assert!(wrong[1].is_sound());
    // And a pull mends it.
    pull(&hub).unwrap();
    assert!(hub.verify("tiny", None, &mut go_on).unwrap().iter().all(Checked::is_sound));
    assert_eq!(fs::read(path.join("vae/config.json")).unwrap(), CONFIG);
}

#[test]
fn an_announced_hash_that_the_bytes_do_not_have_is_refused() {
    let bench = Bench::published();
    let announced = sha256(b"what was uploaded");
    bench.server.publish("owner/model", "weights.safetensors", &weights(), &announced, true);
    let unknown = "recorded-at-first-pull";
    let hub = Bench::client_of(bench.settings(), manifest(COMMIT, "", unknown, unknown));
    let error = pull(&hub).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let message = error.to_string();
    assert!(message.contains(&announced) && message.contains(&sha256(&weights())), "{message}");
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

#[cfg(feature = "cli")]
mod command_line {
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// The program, with the hub on loopback and nothing of the user's.
    fn program(bench: &Bench, typed: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_animatelcm"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HF_") {
                command.env_remove(name);
            }
        }
        command
            .arg("models")
            .args(typed)
            .env_remove("HUGGING_FACE_HUB_TOKEN")
            .env("HF_HOME", bench.cache.path().join("home"))
            .env("HF_HUB_CACHE", bench.cache.path())
            .env("HF_ENDPOINT", bench.server.endpoint())
            .stdin(Stdio::null());
        command
    }

    fn run(bench: &Bench, typed: &[&str]) -> Output {
        program(bench, typed).output().unwrap()
    }

    fn stdout(output: &Output) -> &str {
        std::str::from_utf8(&output.stdout).unwrap()
    }

    fn stderr(output: &Output) -> &str {
        std::str::from_utf8(&output.stderr).unwrap()
    }

    fn code(output: &Output) -> i32 {
        output.status.code().unwrap()
    }

    /// `tiny`'s manifest as a file of the user's.
    fn own_manifest(bench: &Bench) -> String {
        let Entry::Model(model) = sound_manifest() else { panic!() };
        let file = bench.cache.path().join("mine.toml");
        fs::write(&file, toml::to_string(&model).unwrap()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_model_of_ones_own_manifest_is_pulled_shown_checked_and_removed() {
        let bench = Bench::published();
        let file = &own_manifest(&bench);

        let pulled = run(&bench, &["pull", file]);
        assert_eq!(code(&pulled), 0, "{}", stderr(&pulled));
        assert_eq!(stdout(&pulled), "");
        assert!(stderr(&pulled).ends_with("vae/config.json: ok\nweights.safetensors: ok\n"));
        assert_eq!(stderr(&run(&bench, &["pull", file, "--quiet"])), "");

        let snapshot = bench.repo("owner/model").join("snapshots").join(COMMIT);
        let path = run(&bench, &["path", file, "--offline"]);
        assert_eq!(stdout(&path), format!("{}\n", snapshot.display()));
        let checked = run(&bench, &["verify", file]);
        assert_eq!(stdout(&checked).lines().count(), 2);
        assert!(stdout(&checked).lines().all(|line| line.starts_with("ok ")));

        fs::write(snapshot.join("vae/config.json"), b"{}").unwrap();
        let wrong = run(&bench, &["verify", file]);
        assert_eq!(code(&wrong), 5);
        assert!(stdout(&wrong).starts_with("WRONG "), "{}", stdout(&wrong));
        assert!(stderr(&wrong).contains("error: tiny: vae/config.json: sha256 is "));
        assert_eq!(code(&run(&bench, &["rm", file])), 0);
        assert_eq!(code(&run(&bench, &["path", file])), 3);
    }

    #[test]
    fn the_list_is_a_table_or_json() {
        let bench = Bench::new();
        let table = run(&bench, &["list"]);
        assert!(stdout(&table).starts_with("NAME"), "{}", stdout(&table));
        let json: serde_json::Value =
            serde_json::from_slice(&run(&bench, &["list", "--json"]).stdout).unwrap();
        let entries = json.as_array().unwrap();
        assert_eq!(entries.len(), stdout(&table).lines().count() - 1);
        assert_eq!(entries[0]["name"], "animatelcm");
        assert_eq!(entries[0]["state"], "absent");
    }

    #[test]
    fn each_failure_has_its_exit_code_one_line_and_a_hint() {
        let bench = Bench::new();
        // The server is at another commit than the pinned one.
        bench.server.small("madebyollin/taesd", "config.json", b"{}");
        let refused = run(&bench, &["pull", "taesd"]);
        assert_eq!(code(&refused), 5, "{}", stderr(&refused));

        let absent = run(&bench, &["pull", "animatelcm-t2v"]);
        assert_eq!(code(&absent), 3, "{}", stderr(&absent));
        assert_eq!(
            stderr(&absent),
            "error: animatelcm-t2v: `wangfuyun/AnimateLCM` has no `AnimateLCM_sd15_t2v.ckpt`\n"
        );

        bench.server.answer("wangfuyun/AnimateLCM", 401);
        let closed = run(&bench, &["pull", "animatelcm-t2v"]);
        assert_eq!(code(&closed), 3, "{}", stderr(&closed));
        assert!(stderr(&closed).contains("\nhint: ") && stderr(&closed).contains("HF_TOKEN"));

        let asked = bench.server.asked().len();
        for offline in [
            program(&bench, &["pull", "taesd", "--offline"]).output().unwrap(),
            program(&bench, &["pull", "taesd"]).env("HF_HUB_OFFLINE", "1").output().unwrap(),
        ] {
            assert_eq!(code(&offline), 3);
            assert_eq!(
                stderr(&offline),
                "error: taesd: not downloaded, and this is offline\n\
                 hint: animatelcm models pull taesd\n"
            );
        }
        assert_eq!(bench.server.asked().len(), asked);

        let unknown = run(&bench, &["pull", "animatlcm"]);
        assert_eq!(code(&unknown), 2);
        assert!(stderr(&unknown).starts_with("error: model: `animatlcm` is not in the manifest\n"));
    }

    #[test]
    #[cfg(unix)]
    fn a_manifest_that_never_ends_is_not_read() {
        let bench = Bench::new();
        let path = |name: &str| bench.cache.path().join(name);
        std::os::unix::fs::symlink("/dev/zero", path("zero.toml")).unwrap();
        assert!(Command::new("mkfifo").arg(path("fifo.toml")).status().unwrap().success());
        for name in ["zero.toml", "fifo.toml"] {
            let pulled = run(&bench, &["pull", path(name).to_str().unwrap()]);
            assert_eq!(code(&pulled), 2, "{}", stderr(&pulled));
            let words = format!("{name}: is not an ordinary file\n");
            assert!(stderr(&pulled).ends_with(&words), "{}", stderr(&pulled));
        }
    }

    #[test]
    fn a_strange_redirect_is_one_line() {
        let bench = Bench::new();
        bench.server.redirect(None);
        let pulled = run(&bench, &["pull", "taesd"]);
        assert_eq!(code(&pulled), 3);
        assert_eq!(stderr(&pulled).lines().count(), 1, "{}", stderr(&pulled));
        assert!(stderr(&pulled).starts_with("error: taesd: "), "{}", stderr(&pulled));
    }

    #[test]
    fn the_token_of_the_environment_is_sent() {
        let bench = Bench::published();
        let file = &own_manifest(&bench);
        fs::create_dir_all(bench.cache.path().join("home")).unwrap();
        fs::write(bench.cache.path().join("home/token"), "hf_from_file\n").unwrap();
        program(&bench, &["pull", file]).env("HF_TOKEN", "hf_from_variable").output().unwrap();
        assert_eq!(bench.server.asked()[0].token.as_deref(), Some("Bearer hf_from_variable"));
        run(&bench, &["rm", file]);
        let asked = bench.server.asked().len();
        run(&bench, &["pull", file]);
        assert_eq!(bench.server.asked()[asked].token.as_deref(), Some("Bearer hf_from_file"));
    }

    #[test]
    #[cfg(unix)]
    fn ctrl_c_leaves_what_has_arrived_and_the_next_pull_goes_on_there() {
        let bench = Bench::published();
        let file = &own_manifest(&bench);
        bench.server.slow_down();
        let child = program(&bench, &["pull", file])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let arrived = || fs::metadata(bench.partial()).map_or(0, |partial| partial.len());
        for _ in 0..200 {
            if arrived() > 50_000 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let stopped = child.wait_with_output().unwrap();
        assert_eq!(stopped.status.code(), Some(130), "{}", stderr(&stopped));
        assert!(stderr(&stopped).ends_with("error: interrupted\n"), "{}", stderr(&stopped));
        let kept = arrived();
        assert!((50_000..800_000).contains(&kept), "{kept}");

        assert_eq!(code(&run(&bench, &["pull", file])), 0);
        let last = bench.server.asked().pop().unwrap();
        assert_eq!(last.range, Some(format!("bytes={kept}-")));
    }
}
