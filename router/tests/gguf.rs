//! What the router knows of a model, read from a GGUF file.

use lockstep_models::{ModelFiles, testing};
use lockstep_router::chat::Conversation;
use lockstep_router::model::Model;
use lockstep_router::tokenizer::{Detokenizer, SpecialTokens};
use serde_json::json;

#[test]
fn the_demo_model_is_the_same_by_way_of_a_gguf_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, testing::demo_as_gguf()).expect("room for a model");
    let load = |files| Model::load(&files, "demo".to_owned()).expect("the model's files are sound");
    let (original, converted) = (load(ModelFiles::EmbeddedDemo), load(ModelFiles::Gguf(path)));
    assert_eq!(converted.end_tokens, original.end_tokens);
    assert_eq!(converted.max_positions, original.max_positions);
    let prompt = |model: &Model| {
        let message = json!({"role": "user", "content": "Où est 12,5 😀?\n"});
        let template = model.template.as_ref().expect("the demo model chats");
        template
            .render(&Conversation { messages: vec![message], ..Conversation::default() })
            .expect("a message is rendered")
    };
    assert_eq!(prompt(&converted), prompt(&original));
    let encode = |model: &Model| {
        model.tokenizer.encode(&prompt(model), SpecialTokens::Add).expect("every text has tokens")
    };
    let tokens = encode(&converted);
    assert_eq!(tokens, encode(&original));
    let vocabulary = converted.tokenizer.vocabulary();
    let mut stream = Detokenizer::new();
    let text: String = tokens.iter().map(|token| stream.push(vocabulary.bytes(*token))).collect();
    assert_eq!(text, prompt(&converted));
}
