//! What cannot be had, in the words a person reads after "failed to".

use std::os::unix::fs::symlink;

use lockstep_models::hub::{HubError, download};

use crate::cached::closed_port;
use crate::stub::{Access, Fault, Model, OUTSIDER_TOKEN, Stub, etag_of};
use crate::*;

const WEIGHTS: NamedFile<'_> = ("model.safetensors", b"weights");

/// Downloads and compares what is said, with the Hub's address and the folder's path by their names.
#[track_caller]
fn check(stub: &Stub, change: impl FnOnce(&mut HubSource), name: &str, expected: &str) {
    let cache = tempfile::tempdir().expect("a folder");
    let mut source = source(stub, cache.path());
    change(&mut source);
    let said = download(name, &source).expect_err(name).to_string();
    let said = said
        .replace(&source.endpoint, "HUB")
        .replace(source.endpoint.trim_start_matches("http://"), "HOST")
        .replace(&*cache.path().to_string_lossy(), "CACHE");
    assert_eq!(said, expected);
    let model = cache.path().join(format!("models--{}", name.replace('/', "--")));
    assert!(!model.join("refs").exists(), "nothing stands for what is not here");
}

fn usual(_: &mut HubSource) {}

#[test]
fn a_name_that_is_none() {
    let stub = Stub::new(&[]);
    for name in ["a b", "../etc", "a//b", "", "org/name/more"] {
        let expected = format!(
            "find model {name:?}: it is no folder here and no name on the Hub, which reads org/name"
        );
        check(&stub, usual, name, &expected);
    }
    let revised = |source: &mut HubSource| source.revision = "../../x".to_owned();
    let expected = "find revision \"../../x\" of org/small: a revision is a branch, a tag or a commit";
    check(&stub, revised, NAME, expected);
    assert_eq!(stub.asked(), []);
}

#[test]
fn a_model_that_is_not_there_or_hidden() {
    let private = Model::new(&[CONFIG, TOKENIZER, WEIGHTS]).access(Access::Private);
    let stub = Stub::new(&[("org/private", private)]);
    let stranger = "there is none of that name that everyone may see; check the name, or set HF_TOKEN if it is \
                    private";
    let known =
        "there is none of that name that this token may see; check the name, and whose token HF_TOKEN is";
    for name in ["org/absent", "org/private"] {
        check(&stub, usual, name, &format!("find model {name} on HUB: {stranger}"));
        let with_token = |source: &mut HubSource| source.token = token(OUTSIDER_TOKEN);
        check(&stub, with_token, name, &format!("find model {name} on HUB: {known}"));
    }
}

#[test]
fn a_revision_that_is_not_there() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    let revised = |source: &mut HubSource| source.revision = "v9".to_owned();
    let expected = "find revision v9 of org/small on HUB: the model is there, a branch, tag or commit of that name \
                    is not; check --revision";
    check(&stub, revised, NAME, expected);
}

#[test]
fn a_gated_model() {
    let gated = Model::new(&[CONFIG, TOKENIZER, WEIGHTS]).access(Access::Gated);
    let stub = Stub::new(&[(NAME, gated)]);
    let expected = "download org/small: it is gated, and no token was given; accept its terms at HUB/org/small, \
                    then set HF_TOKEN to a token of that account";
    check(&stub, usual, NAME, expected);
    let expected = "download org/small: it is gated, and the account of this token has not been let in; ask at \
                    HUB/org/small and wait for the answer (a fine-grained token also needs the right to read gated \
                    models)";
    check(&stub, |source| source.token = token(OUTSIDER_TOKEN), NAME, expected);
}

#[test]
fn a_token_that_is_refused() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    let expected = "log in to HUB with the token from HF_TOKEN: Invalid credentials in Authorization header; renew \
                    it, or go without: public models need none";
    check(&stub, |source| source.token = token("hf_expired"), NAME, expected);
    let expected = "use the token from HF_TOKEN: it holds characters that no token has; copy it again";
    check(&stub, |source| source.token = token("hf_\nbroken"), NAME, expected);
}

#[test]
fn no_network() {
    let stub = Stub::new(&[]);
    let expected = "reach HOST: Connection refused (os error 111); is there a network? What was downloaded before \
                    is served with --offline, a folder with --model-id ./folder";
    check(&stub, |source| source.endpoint = closed_port(), NAME, expected);
}

#[test]
fn an_address_that_is_no_hub() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    for endpoint in ["hub", "ftp://hub.example", "http://"] {
        let expected = format!(
            "use {endpoint:?} as the Hub: an address such as https://huggingface.co is expected; check HF_ENDPOINT"
        );
        let cache = tempfile::tempdir().expect("a folder");
        let source = HubSource { endpoint: endpoint.to_owned(), ..source(&stub, cache.path()) };
        assert_eq!(download(NAME, &source).expect_err(endpoint).to_string(), expected);
    }
    stub.fail("list", [Fault::Status(200, "")]);
    let expected = "download the list of files of org/small: HOST answers with something else than a list of files \
                    (EOF while parsing a value at line 1 column 0); is HOST a Hub? HF_ENDPOINT says where the Hub is";
    check(&stub, usual, NAME, expected);
}

#[test]
fn a_hub_that_stays_busy() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    stub.fail("list", (0..3).map(|_| Fault::Status(503, "")));
    let expected = "download the list of files of org/small: HOST answers 503; it is down or overloaded; try again \
                    later, what came so far is kept";
    check(&stub, usual, NAME, expected);
    assert_eq!(stub.asked().len(), 3);
    stub.fail("config.json", (0..3).map(|_| Fault::Status(429, "retry-after: 300\r\n")));
    let expected = "download config.json of org/small: HOST answers 429; it limits how often it is asked; wait \
                    some minutes (with HF_TOKEN it allows more)";
    check(&stub, usual, NAME, expected);
}

#[test]
fn an_answer_that_is_none_of_these() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    stub.fail("list", [Fault::Status(403, "x-error-message: Access to this resource is disabled.\r\n")]);
    let expected = "download the list of files of org/small: HOST answers 403: Access to this resource is \
                    disabled.; is HOST a Hub? HF_ENDPOINT says where the Hub is";
    check(&stub, usual, NAME, expected);
}

#[test]
fn what_cannot_be_served() {
    let index: &[u8] = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#;
    let cases: [(&[NamedFile<'_>], &str); 6] = [
        (
            &[CONFIG, TOKENIZER, ("pytorch_model.bin", b"")],
            "use org/small: expected *.safetensors, found pytorch_model.bin; such files can run code when they are \
             read; convert them with https://huggingface.co/spaces/safetensors/convert, or with transformers' \
             save_pretrained, and serve that folder",
        ),
        (
            &[("README.md", b""), ("small.Q4_K_M.gguf", b""), ("small.Q8_0.gguf", b"")],
            "use org/small: expected *.safetensors, found small.Q4_K_M.gguf, small.Q8_0.gguf; choose one of them \
             with --gguf-file small.Q4_K_M.gguf",
        ),
        (
            &[CONFIG, WEIGHTS, ("tokenizer.model", b"")],
            "use org/small: expected tokenizer.json, found tokenizer.model, which is not read; with transformers, \
             AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes tokenizer.json; serve a folder that \
             holds it",
        ),
        (
            &[CONFIG, TOKENIZER, ("README.md", b"")],
            "use org/small: expected model.safetensors, or parts with model.safetensors.index.json, found \
             README.md, config.json, tokenizer.json",
        ),
        (
            &[CONFIG, TOKENIZER, ("model.safetensors.index.json", index)],
            "use org/small: its model.safetensors.index.json names model-00001-of-00002.safetensors, which is not \
             there; its owners may mend it, or another revision be whole",
        ),
        (
            &[CONFIG, TOKENIZER, ("model.safetensors.index.json", b"{}")],
            "read model.safetensors.index.json of org/small: missing field `weight_map` at line 1 column 2; a file \
             that is whole lists every tensor in weight_map",
        ),
    ];
    for (files, expected) in cases {
        check(&Stub::new(&[(NAME, Model::new(files))]), usual, NAME, expected);
    }
}

#[test]
fn a_cut_that_stays() {
    let weights = weights();
    let model = Model::new(&[CONFIG, TOKENIZER, ("model.safetensors", &weights)]);
    let stub = Stub::new(&[(NAME, model)]);
    stub.fail("model.safetensors", [Fault::CutAfter(1 << 20)]);
    stub.fail("model.safetensors", (0..3).map(|_| Fault::CutAfter(0)));
    let expected = "download model.safetensors of org/small: 1.00 MiB of 2.67 MiB came, then the connection was \
                    cut; run the same again, it goes on from there";
    check(&stub, usual, NAME, expected);
}

#[test]
fn offline_without_a_download() {
    let stub = Stub::new(&[]);
    let expected = "find any file of org/small at revision main in CACHE: downloading is forbidden by --offline or \
                    HF_HUB_OFFLINE; run lockstep download org/small once with a network";
    check(&stub, |source| source.network = Network::Offline, NAME, expected);
}

#[test]
fn a_full_disk() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    let cache = tempfile::tempdir().expect("a folder");
    let blobs = cache.path().join("models--org--small/blobs");
    std::fs::create_dir_all(&blobs).expect("it can be made");
    // Takes no byte: no space is left on that device.
    let partial = format!("{}.incomplete", etag_of("model.safetensors", b"weights"));
    symlink("/dev/full", blobs.join(partial)).expect("it can be linked");
    let error = download(NAME, &source(&stub, cache.path())).expect_err("it does not fit");
    let said = error.to_string().replace(&*blobs.to_string_lossy(), "BLOBS");
    let expected = "store model.safetensors of org/small in BLOBS: No space left on device (os error 28) with 7 B \
                    to come; free some space, or choose another disk with HF_HOME; run the same again, it goes on \
                    from there";
    assert_eq!(said, expected);
    assert!(!blobs.join(etag_of("model.safetensors", b"weights")).exists());
}

#[test]
fn a_disk_that_is_too_small_from_the_start() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    let huge = "location: /x\r\nx-linked-size: 1152921504606846976\r\nx-linked-etag: \"abc\"\r\n";
    stub.fail("model.safetensors", [Fault::Status(302, huge)]);
    let cache = tempfile::tempdir().expect("a folder");
    let error = download(NAME, &source(&stub, cache.path())).expect_err("no disk is that large");
    let said = error.to_string();
    assert!(said.starts_with("download org/small: 1.00 EiB are to come, "), "{said}");
    assert!(ranges(&stub.asked(), "model.safetensors").is_empty());
}

#[test]
fn an_etag_that_leads_out_of_the_folder() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    let elsewhere = "location: /x\r\nx-linked-size: 7\r\nx-linked-etag: \"../../x\"\r\n";
    stub.fail("model.safetensors", [Fault::Status(302, elsewhere)]);
    let expected = "download model.safetensors of org/small: HOST answers with an ETag that can be no file's name; \
                    is HOST a Hub? HF_ENDPOINT says where the Hub is";
    check(&stub, usual, NAME, expected);
}

#[test]
fn a_folder_that_cannot_be_written() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, WEIGHTS]))]);
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("file");
    std::fs::write(&cache, "in the way").expect("it can be written");
    let error = download(NAME, &source(&stub, &cache)).expect_err("it is no folder");
    assert!(matches!(&error, HubError::Cache { .. }), "{error}");
}
