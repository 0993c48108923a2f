//! Downloads: whole, cut, resumed, given up.

use std::fs;
use std::ops::ControlFlow;
use std::time::Duration;

use animatelcm::hub::Event;
use animatelcm::hub::manifest::Kind;
use animatelcm::{Error, ErrorKind};

use crate::support::hub::{Bench, CONFIG, go_on, manifest, pull, sound_manifest, weights};
use crate::support::hub_server::{Asked, COMMIT, Fault, sha256};

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
