//! What is fetched, and from whom.

use lockstep_models::hub::{download, download_config};

use crate::stub::{Access, GOOD_TOKEN, Model, Stub, commit};
use crate::*;

const INDEX: &[u8] =
    br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors",
"c":"model-00001-of-00002.safetensors"}}"#;

#[test]
fn only_what_is_needed_is_fetched() {
    let stub = Stub::new(&[(
        NAME,
        Model::new(&[
            CONFIG,
            TOKENIZER,
            (".gitattributes", b"no"),
            ("README.md", b"no"),
            ("additional_chat_templates/tool_use.jinja", b"a template"),
            ("chat_template.jinja", b"another"),
            ("consolidated.safetensors", b"the same once more"),
            ("model.safetensors", b"weights"),
            ("onnx/model.safetensors", b"no"),
            ("original/consolidated.00.pth", b"no"),
            ("pytorch_model.bin", b"no"),
            ("tokenizer.model", b"no"),
        ]),
    )]);
    let cache = tempfile::tempdir().expect("a folder");
    let folder = download(NAME, &source(&stub, cache.path())).expect("it is there");
    let expected = [
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    assert_eq!(names(&folder), expected);
    assert_eq!(names(&folder.join("additional_chat_templates")), ["tool_use.jinja"]);
    let template = std::fs::read(folder.join("additional_chat_templates/tool_use.jinja"));
    assert_eq!(template.expect("the link leads to it"), b"a template");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), b"weights");
    assert!(incomplete(cache.path()).is_empty());
    for unneeded in ["README", "onnx", "original", ".bin", "consolidated", "tokenizer.model"] {
        assert!(stub.asked().iter().all(|asked| !asked.path.contains(unneeded)), "{unneeded}");
    }
}

#[test]
fn parts_are_fetched_as_the_index_names_them() {
    let files: &[NamedFile<'_>] = &[
        CONFIG,
        TOKENIZER,
        ("model-00001-of-00002.safetensors", b"one"),
        ("model-00002-of-00002.safetensors", b"two"),
        ("model-00003-of-00003.safetensors", b"of another division"),
        ("model.safetensors.index.json", INDEX),
    ];
    let stub = Stub::new(&[(NAME, Model::new(files))]);
    let cache = tempfile::tempdir().expect("a folder");
    let folder = download(NAME, &source(&stub, cache.path())).expect("it is there");
    let weights: Vec<_> =
        names(&folder).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert_eq!(weights, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
}

#[test]
fn a_configuration_is_fetched_alone_and_stands_for_nothing_else() {
    let stub = Stub::new(&[(NAME, Model::new(&[CONFIG, TOKENIZER, ("pytorch_model.bin", b"pickled")]))]);
    let cache = tempfile::tempdir().expect("a folder");
    let online = source(&stub, cache.path());
    let folder = download_config(NAME, &online).expect("it is there");
    assert_eq!(names(&folder), ["config.json"]);
    let offline = HubSource { network: Network::Offline, ..online.clone() };
    assert_eq!(download_config(NAME, &offline).expect("it is here"), folder);
    download(NAME, &offline).expect_err("the rest is not here");

    let whole = [CONFIG, TOKENIZER, ("model.safetensors", b"weights".as_slice())];
    stub.set(NAME, Model::new(&whole));
    let whole_folder = download(NAME, &online).expect("it is there");
    stub.set(NAME, Model::default().commit(&commit('b'), "main", &whole));
    assert!(download_config(NAME, &online).expect("it is there").ends_with(commit('b')));
    assert_eq!(download(NAME, &offline).expect("the former commit is whole"), whole_folder);
}

#[test]
fn one_gguf_file_is_fetched_alone() {
    let model = Model::new(&[("a.gguf", b"a"), ("b.gguf", b"b"), ("README.md", b"no")]);
    let stub = Stub::new(&[(NAME, model)]);
    let cache = tempfile::tempdir().expect("a folder");
    let source = HubSource { gguf_file: Some("b.gguf".to_owned()), ..source(&stub, cache.path()) };
    let file = download(NAME, &source).expect("it is there");
    assert_eq!(std::fs::read(&file).expect("a file"), b"b");
    assert_eq!(names(file.parent().expect("it is in a folder")), ["b.gguf"]);
    let offline = HubSource { network: Network::Offline, ..source };
    assert_eq!(download(NAME, &offline).expect("it is here"), file);
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let of = |text: &'static [u8]| [CONFIG, TOKENIZER, ("model.safetensors", text)];
    let model = Model::new(&of(b"main")).commit(&commit('b'), "refs/pr/1", &of(b"branch")).commit(
        &commit('c'),
        "v1.0",
        &of(b"tag"),
    );
    let stub = Stub::new(&[(NAME, model)]);
    let cache = tempfile::tempdir().expect("a folder");
    let commits = [commit('a'), commit('b'), commit('c')];
    let cases = [
        ("main", "main", 'a'),
        ("refs/pr/1", "branch", 'b'),
        ("v1.0", "tag", 'c'),
        (commits[1].as_str(), "branch", 'b'),
    ];
    for (revision, expected, letter) in cases {
        let source = HubSource { revision: revision.to_owned(), ..source(&stub, cache.path()) };
        let folder = download(NAME, &source).expect(revision);
        assert!(folder.ends_with(commit(letter)), "{revision}: {}", folder.display());
        let text = std::fs::read_to_string(folder.join("model.safetensors")).expect("a file");
        assert_eq!(text, expected);
        let offline = HubSource { network: Network::Offline, ..source };
        assert_eq!(download(NAME, &offline).expect("it is here"), folder);
    }
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let files = [CONFIG, TOKENIZER, ("model.safetensors", b"weights".as_slice())];
    let gated = Model::new(&files).access(Access::Gated);
    let stub = Stub::new(&[(NAME, gated)]);
    let cache = tempfile::tempdir().expect("a folder");
    let source = HubSource { token: token(GOOD_TOKEN), ..source(&stub, cache.path()) };
    download(NAME, &source).expect("the token opens it");
    let asked = stub.asked();
    assert!(asked.iter().any(|asked| !asked.of_hub), "the weights come from elsewhere");
    for asked in asked {
        assert_eq!(asked.token.is_some(), asked.of_hub, "{asked:?}");
    }
    assert!(!format!("{source:?}").contains(GOOD_TOKEN));
}

#[test]
fn a_renamed_model_is_followed() {
    let files = [CONFIG, TOKENIZER, ("model.safetensors", b"weights".as_slice())];
    let stub = Stub::new(&[(NAME, Model::new(&files))]);
    stub.rename("org/former", NAME);
    let cache = tempfile::tempdir().expect("a folder");
    let folder = download("org/former", &source(&stub, cache.path())).expect("it is there");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), b"weights");
}
