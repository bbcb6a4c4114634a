//! Downloads that break off.

use std::path::PathBuf;

use lockstep_models::hub::{HubError, download};

use crate::stub::{Fault, Model, Stub, commit, etag_of};
use crate::*;

const FILE: &str = "model.safetensors";

/// A Hub with one model that has something to download, and where it goes.
struct Setting {
    stub: Stub,
    weights: Vec<u8>,
    cache: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        let weights = weights();
        let model = Model::new(&[CONFIG, TOKENIZER, (FILE, &weights)]);
        let cache = tempfile::tempdir().expect("a folder");
        Self { stub: Stub::new(&[(NAME, model)]), weights, cache }
    }

    fn source(&self) -> HubSource {
        source(&self.stub, self.cache.path())
    }

    /// Without a second attempt at anything.
    fn impatient(&self) -> HubSource {
        let mut source = self.source();
        source.patience.attempts = 1;
        source
    }

    fn blob(&self) -> PathBuf {
        let blobs = self.cache.path().join("models--org--small/blobs");
        blobs.join(etag_of(FILE, &self.weights))
    }

    fn partial(&self) -> PathBuf {
        self.blob().with_extension("incomplete")
    }

    /// Whether the file is here as it should be, and nothing else is left.
    fn check_whole(&self, folder: &Path) {
        assert!(std::fs::read(folder.join(FILE)).expect("a file") == self.weights, "other bytes came");
        assert!(incomplete(self.cache.path()).is_empty());
    }
}

#[test]
fn a_cut_connection_goes_on_where_it_stopped() {
    let it = Setting::new();
    it.stub.fail(FILE, [Fault::CutAfter(1_000_000), Fault::CutAfter(0), Fault::CutAfter(500_000)]);
    it.check_whole(&download(NAME, &it.source()).expect("it comes in the end"));
    let ranges = ranges(&it.stub.asked(), FILE);
    assert_eq!(ranges, [None, Some(1_000_000), Some(1_000_000), Some(1_500_000)]);
}

#[test]
fn a_line_that_breaks_more_often_than_the_patience_lasts_gets_there() {
    let it = Setting::new();
    it.stub.fail(FILE, (0..10).map(|_| Fault::CutAfter(100_000)));
    it.check_whole(&download(NAME, &it.source()).expect("it comes in the end"));
}

#[test]
fn another_run_goes_on_where_the_last_one_stopped() {
    let it = Setting::new();
    it.stub.fail(FILE, [Fault::CutAfter(1_000_000)]);
    let error = download(NAME, &it.impatient()).expect_err("it was cut");
    assert!(matches!(error, HubError::Truncated { received: 1_000_000, .. }), "{error}");
    assert!(!it.blob().exists(), "nothing partial has a final name");
    assert_eq!(std::fs::metadata(it.partial()).expect("it is kept").len(), 1_000_000);
    let offline = HubSource { network: Network::Offline, ..it.source() };
    let error = download(NAME, &offline).expect_err("it is not whole");
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    it.stub.asked();
    it.check_whole(&download(NAME, &it.source()).expect("it goes on"));
    assert_eq!(ranges(&it.stub.asked(), FILE), [Some(1_000_000)]);
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let it = Setting::new();
    it.stub.fail(FILE, [Fault::CutAfter(1_000_000), Fault::IgnoreRange]);
    it.check_whole(&download(NAME, &it.source()).expect("it comes in the end"));
}

#[test]
fn a_file_that_changed_meanwhile_starts_anew() {
    let mut it = Setting::new();
    it.stub.fail(FILE, [Fault::CutAfter(1_000_000)]);
    download(NAME, &it.impatient()).expect_err("it was cut");
    it.weights.reverse();
    let changed = Model::default().commit(&commit('b'), "main", &[CONFIG, TOKENIZER, (FILE, &it.weights)]);
    it.stub.set(NAME, changed);
    it.stub.asked();
    let folder = download(NAME, &it.source()).expect("it is there");
    assert_eq!(ranges(&it.stub.asked(), FILE), [None]);
    assert!(std::fs::read(folder.join(FILE)).expect("a file") == it.weights, "other bytes came");
}

#[test]
fn what_is_complete_but_for_its_name_needs_no_transfer() {
    let it = Setting::new();
    std::fs::create_dir_all(it.partial().parent().expect("a folder")).expect("it can be made");
    std::fs::write(it.partial(), &it.weights).expect("it can be written");
    it.check_whole(&download(NAME, &it.source()).expect("it is there"));
    assert_eq!(ranges(&it.stub.asked(), FILE), []);
}

#[test]
fn a_partial_file_of_other_bytes_or_too_many_is_thrown_away() {
    for length in [1_000_000, 9_000_000] {
        let it = Setting::new();
        std::fs::create_dir_all(it.partial().parent().expect("a folder")).expect("it can be made");
        std::fs::write(it.partial(), vec![7; length]).expect("it can be written");
        it.check_whole(&download(NAME, &it.source()).expect("it comes in the end"));
    }
}

#[test]
fn a_file_of_other_bytes_is_never_taken_for_it() {
    let it = Setting::new();
    it.stub.fail(FILE, [Fault::Corrupt, Fault::Corrupt]);
    let error = download(NAME, &it.source()).expect_err("it is corrupt both times");
    let expected = etag_of(FILE, &it.weights);
    assert!(matches!(&error, HubError::Corrupt { expected: hash, .. } if *hash == expected), "{error}");
    assert!(!it.blob().exists());
    it.check_whole(&download(NAME, &it.source()).expect("it comes this time"));
}

#[test]
fn a_length_that_is_wrong_is_noticed() {
    let it = Setting::new();
    it.stub.fail(FILE, (0..3).map(|_| Fault::Shorter(5)));
    let error = download(NAME, &it.source()).expect_err("it is too short each time");
    assert!(matches!(error, HubError::Truncated { expected: 2_800_000, .. }), "{error}");
    assert!(!it.blob().exists());
}

#[test]
fn a_hub_that_falls_silent_is_asked_again() {
    let it = Setting::new();
    it.stub.fail("list", [Fault::Silence]);
    it.stub.fail(FILE, [Fault::HangAfter(1_000_000), Fault::Silence]);
    let mut source = it.source();
    source.patience.silence = Duration::from_millis(300);
    source.patience.attempts = 20;
    it.check_whole(&download(NAME, &source).expect("it comes in the end"));
}

#[test]
fn a_hub_that_is_busy_is_asked_again() {
    let it = Setting::new();
    it.stub.fail("list", [Fault::Status(503, ""), Fault::Status(429, "retry-after: 0\r\n")]);
    it.stub.fail(FILE, [Fault::Status(500, ""), Fault::Status(504, "")]);
    it.check_whole(&download(NAME, &it.source()).expect("it comes in the end"));
}
