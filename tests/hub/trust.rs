//! What is not believed of a server, and what it is not told.

use std::fs;
use std::ops::ControlFlow;

use animatelcm::ErrorKind;
use animatelcm::hub::{Authority, Checked, Event};

use crate::support::hub::{
    Bench, CONFIG, files_below, go_on, manifest, pull, sound_manifest, weights,
};
use crate::support::hub_server::{COMMIT, Fault, HubServer, sha256};

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
fn a_mirror_that_serves_something_else_is_refused() {
    let bench = Bench::new();
    bench.server.small("other/copy", "vae/config.json", b"{\"sample_size\": 65}\n");
    let error = pull(&bench.client()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
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
