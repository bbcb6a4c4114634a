//! Real-looking answers of every style, whole and in any cuts; grammars against what they allow.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::engine::{StopStrings, StopText};
use crate::grammar::{CompiledGrammar, Completeness, Grammar, Grammars};
use crate::testing::{byte_level_tokenizer, ids};
use crate::tokenizer::{Detokenizer, Tokenizer};

const STYLES: [CallStyle; 5] =
    [CallStyle::Llama3, CallStyle::Hermes, CallStyle::Mistral, CallStyle::MistralArgs, CallStyle::Json];

fn names() -> Arc<[String]> {
    ["weather", "weather_map", "search"].map(str::to_owned).into()
}

/// Content, calls with their arguments, and how it ended.
type Said = (String, Vec<(String, String)>, Outcome);

fn said(pieces: Vec<Piece>, outcome: Outcome) -> Said {
    let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for piece in pieces {
        match piece {
            Piece::Content(text) => content.push_str(&text),
            Piece::Call { name } => calls.push((name, String::new())),
            Piece::Arguments(text) => calls.last_mut().unwrap().1.push_str(&text),
        }
    }
    (content, calls, outcome)
}

fn parse<'a>(style: CallStyle, deltas: impl IntoIterator<Item = &'a str>) -> Said {
    let mut parser = CallParser::new(style, names());
    let mut pieces: Vec<Piece> = deltas.into_iter().flat_map(|delta| parser.push(delta)).collect();
    let (rest, outcome) = parser.finish();
    pieces.extend(rest);
    said(pieces, outcome)
}

/// A style, an answer, its content and its calls.
type Golden = (CallStyle, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const GOLDEN: [Golden; 20] = [
    (
        CallStyle::Llama3,
        r#"{"name": "weather", "parameters": {"place": "Zürich", "days": "3"}}"#,
        "",
        &[("weather", r#"{"place": "Zürich", "days": "3"}"#)],
    ),
    (
        CallStyle::Llama3,
        "<|python_tag|>{\"type\": \"function\", \"name\": \"search\", \"parameters\": {\"query\": \"a}\\\"b\"}}",
        "",
        &[("search", r#"{"query": "a}\"b"}"#)],
    ),
    (
        CallStyle::Llama3,
        r#"{"name": "weather", "parameters": {}}; {"name": "search", "parameters": {"query": "b"}}"#,
        "",
        &[("weather", "{}"), ("search", r#"{"query": "b"}"#)],
    ),
    (CallStyle::Llama3, r#"{"name": "Alice", "age": 3}"#, r#"{"name": "Alice", "age": 3}"#, &[]),
    (CallStyle::Llama3, "It is 5 °C.\n", "It is 5 °C.\n", &[]),
    (
        CallStyle::Hermes,
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"東京\"}}\n</tool_call>",
        "",
        &[("weather", r#"{"place": "東京"}"#)],
    ),
    (
        CallStyle::Hermes,
        "I look it up.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"A\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"search\", \"arguments\": {\"filters\": {\"tags\": [\"😀\"]}}}\n</tool_call>\n",
        "I look it up.",
        &[("weather", r#"{"place": "A"}"#), ("search", r#"{"filters": {"tags": ["😀"]}}"#)],
    ),
    (
        CallStyle::Hermes,
        "Write <tool_call> before a call, as in <tool_call>{\"name\": \"other\", \"arguments\": {}}.",
        "Write <tool_call> before a call, as in <tool_call>{\"name\": \"other\", \"arguments\": {}}.",
        &[],
    ),
    (CallStyle::Hermes, "a <tool", "a <tool", &[]),
    (
        CallStyle::Hermes,
        "<tool_call>{\"name\":\"weather_map\",\"arguments\":{}}</tool_call>and more",
        "and more",
        &[("weather_map", "{}")],
    ),
    (
        CallStyle::Mistral,
        r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"place": "Paris"}}]"#,
        "",
        &[("weather", r#"{"place": "Paris"}"#)],
    ),
    (
        CallStyle::Mistral,
        r#"[TOOL_CALLS][{"name": "weather", "arguments": {"a": [1, 2]}, "id": "VvvODy9mT"}, {"name": "search", "arguments": {}, "id": "abc123DEF"}]"#,
        "",
        &[("weather", r#"{"a": [1, 2]}"#), ("search", "{}")],
    ),
    (CallStyle::Mistral, "[TOOL_CALLS] none", "[TOOL_CALLS] none", &[]),
    (
        CallStyle::MistralArgs,
        r#"[TOOL_CALLS]weather[ARGS]{"place": "Paris"}[TOOL_CALLS]search[CALL_ID]a1B2c3D4e[ARGS]{"query": "x"}"#,
        "",
        &[("weather", r#"{"place": "Paris"}"#), ("search", r#"{"query": "x"}"#)],
    ),
    (
        CallStyle::MistralArgs,
        r#"One moment. [TOOL_CALLS]weather_map[ARGS]{}weather[ARGS]{}"#,
        "One moment.",
        &[("weather_map", "{}"), ("weather", "{}")],
    ),
    (
        CallStyle::Json,
        "{\n  \"name\": \"search\",\n  \"arguments\": {\n    \"query\": \"é\"\n  }\n}",
        "",
        &[("search", "{\n    \"query\": \"é\"\n  }")],
    ),
    (
        CallStyle::Json,
        r#" [{"name": "search", "arguments": {}}, {"name": "weather", "parameters": {"place": "B"}}]"#,
        "",
        &[("search", "{}"), ("weather", r#"{"place": "B"}"#)],
    ),
    (CallStyle::Json, "[1, 2, 3]", "[1, 2, 3]", &[]),
    (
        CallStyle::Json,
        r#"So: {"name": "search", "arguments": {}}"#,
        r#"So: {"name": "search", "arguments": {}}"#,
        &[],
    ),
    (CallStyle::Json, "", "", &[]),
];

#[test]
fn answers_of_known_models_are_taken_apart() {
    for (style, answer, content, calls) in GOLDEN {
        let outcome = if calls.is_empty() { Outcome::Text } else { Outcome::Calls };
        let calls: Vec<(String, String)> =
            calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect();
        assert_eq!(parse(style, [answer]), (content.to_owned(), calls, outcome), "{style:?}: {answer}");
    }
}

#[test]
fn every_cut_in_two_and_every_character_alone_say_the_same() {
    for (style, answer, ..) in GOLDEN {
        let whole = parse(style, [answer]);
        let characters: Vec<String> = answer.chars().map(String::from).collect();
        assert_eq!(parse(style, characters.iter().map(String::as_str)), whole, "{style:?}: {answer}");
        for (cut, _) in answer.char_indices() {
            let (before, after) = answer.split_at(cut);
            assert_eq!(parse(style, [before, after]), whole, "{style:?}: {before} / {after}");
        }
    }
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = CallParser::new(CallStyle::Hermes, names());
    assert_eq!(parser.push("Yes. <tool_call>\n{\"name\": \"weather"), [Piece::Content("Yes.".to_owned())]);
    assert_eq!(parser.push("\", \"arguments\": "), []);
    let begun =
        [Piece::Call { name: "weather".to_owned() }, Piece::Arguments("{\"place\": \"Z".to_owned())];
    assert_eq!(parser.push("{\"place\": \"Z"), begun);
    assert_eq!(parser.push("ü\"}}"), [Piece::Arguments("ü\"}".to_owned())]);
    assert_eq!(parser.push("\n</tool_call>"), []);
    assert_eq!(parser.finish(), (Vec::new(), Outcome::Calls));
}

#[test]
fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
    let cut = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"pla";
    let expected = vec![("weather".to_owned(), "{\"pla".to_owned())];
    assert_eq!(parse(CallStyle::Hermes, [cut]), (String::new(), expected, Outcome::Text));
    let closed = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</to";
    let expected = vec![("weather".to_owned(), "{}".to_owned())];
    assert_eq!(parse(CallStyle::Hermes, [closed]), (String::new(), expected, Outcome::Calls));
}

/// Text with much in it that is, or nearly is, syntax of some style.
fn texts() -> impl Strategy<Value = String> {
    let part = proptest::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[TOOL_",
        "[ARGS]",
        "[CALL_ID]",
        "weather",
        "weather_map",
        "{\"name\": \"weather\", \"arguments\": ",
        "{\"name\": \"search\", \"parameters\": ",
        "{\"type\": \"function\", \"name\": \"search\", \"parameters\": ",
        "{\"name\"",
        "{\"place\": \"Zürich 😀 \\\" }\"}",
        "{}",
        "{",
        "}",
        "\"",
        "\\",
        "[",
        "]",
        ", \"id\": \"abc\"",
        "; ",
        ",",
        " ",
        "\n",
        "é",
        "plain text",
    ]);
    proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

/// The pieces of `text` between cuts at about these places.
fn pieces<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let inside = |cut: &usize| *cut % (text.len() + 1);
    let mut places: Vec<usize> = cuts.iter().map(inside).filter(|at| text.is_char_boundary(*at)).collect();
    places.extend([0, text.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_cuts_of_any_text_say_the_same(
        text in texts(),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
        style in proptest::sample::select(STYLES.to_vec()),
    ) {
        let whole = parse(style, [text.as_str()]);
        prop_assert_eq!(parse(style, pieces(&text, &cuts)), whole.clone());
        let (content, calls, _) = whole;
        // Nothing is invented: all of it stands in the text, in its order.
        let mut rest = text.as_str();
        for (name, arguments) in &calls {
            prop_assert!(rest.contains(name.as_str()) && rest.contains(arguments.as_str()));
            let at = rest.find(arguments.as_str()).unwrap_or(0);
            rest = &rest[at..];
        }
        if calls.is_empty() {
            prop_assert_eq!(content, text);
        }
    }
}

/// What becomes of tokens of these bytes on their way: characters, stop strings, calls.
fn heard<'a>(style: CallStyle, tokens: impl IntoIterator<Item = &'a [u8]>, stops: &[String]) -> Said {
    let (mut detokenizer, mut watch) = (Detokenizer::new(), StopStrings::new(stops, StopText::Cut));
    let mut parser = CallParser::new(style, names());
    let mut pieces = Vec::new();
    let mut stopped = false;
    for token in tokens {
        let passed = watch.push(&detokenizer.push(token));
        pieces.extend(parser.push(&passed.text));
        stopped = passed.stopped;
        if stopped {
            break;
        }
    }
    if !stopped {
        let passed = watch.push(&detokenizer.finish());
        let rest = if passed.stopped { String::new() } else { watch.finish() };
        pieces.extend(parser.push(&(passed.text + &rest)));
    }
    let (rest, outcome) = parser.finish();
    pieces.extend(rest);
    said(pieces, outcome)
}

proptest! {
    #[test]
    fn any_cuts_into_tokens_say_the_same_with_stop_strings_too(
        text in texts(),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
        stops in proptest::collection::vec(
            proptest::sample::select(vec!["</tool_call>", "}", "\"", "ü", "[ARGS]", "_call", "text", "\n "]), 0..3),
        style in proptest::sample::select(STYLES.to_vec()),
    ) {
        let stops: Vec<String> = stops.into_iter().map(str::to_owned).collect();
        let bytes = text.as_bytes();
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        places.extend([0, bytes.len()]);
        places.sort_unstable();
        let tokens = places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        prop_assert_eq!(heard(style, tokens, &stops), heard(style, [bytes], &stops));
    }
}

fn rules(choice: Choice, parallel: Parallel) -> CallRules {
    let place = json!({"type": "object", "properties": {"place": {"type": "string", "maxLength": 9}},
                       "required": ["place"], "additionalProperties": false});
    let nothing = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let function = |name: &str, parameters: &serde_json::Value| Function {
        name: name.to_owned(),
        parameters: parameters.clone(),
    };
    CallRules {
        functions: vec![function("weather", &place), function("search", &nothing)],
        choice,
        parallel,
    }
}

async fn compiled(style: CallStyle, choice: Choice, parallel: Parallel) -> Arc<CompiledGrammar> {
    compile(rules(choice, parallel).grammar(style, &[])).await
}

async fn compile(grammar: Grammar) -> Arc<CompiledGrammar> {
    let tokenizer = Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).unwrap();
    let ends = vec![lockstep_proto::TokenId(ids::IM_END)];
    let grammars = Grammars::start(Arc::new(tokenizer), ends, 4).unwrap();
    let lark = format!("{grammar:?}");
    grammars.compile(grammar).await.unwrap_or_else(|error| panic!("{error}: {lark}")).0
}

/// One call, two calls, and one whose arguments are of the wrong kind, as this style's template writes them.
fn calls_of(style: CallStyle) -> [String; 3] {
    let one = r#"{"place": "Zürich"}"#;
    let write = |calls: &[(&str, &str)]| {
        let object = |key: &str, (name, arguments): &(&str, &str)| {
            format!(r#"{{"name": "{name}", "{key}": {arguments}}}"#)
        };
        let each = |write: &dyn Fn(&(&str, &str)) -> String| calls.iter().map(write).collect::<Vec<_>>();
        match style {
            CallStyle::Llama3 => each(&|call| object("parameters", call)).join("; "),
            CallStyle::Hermes => {
                each(&|call| format!("<tool_call>\n{}\n</tool_call>", object("arguments", call))).join("\n")
            }
            CallStyle::Mistral => {
                format!("[TOOL_CALLS] [{}]", each(&|call| object("arguments", call)).join(", "))
            }
            CallStyle::MistralArgs => {
                each(&|(name, arguments)| format!("[TOOL_CALLS]{name}[ARGS]{arguments}")).concat()
            }
            CallStyle::Json if calls.len() == 1 => object("arguments", &calls[0]),
            CallStyle::Json => format!("[{}]", each(&|call| object("arguments", call)).join(", ")),
        }
    };
    [
        write(&[("weather", one)]),
        write(&[("weather", one), ("search", "{}")]),
        write(&[("weather", r#"{"place": 3}"#)]),
    ]
}

#[tokio::test]
async fn who_must_call_does_and_nothing_else() {
    for style in STYLES {
        let [one, two, wrong] = calls_of(style);
        let several = compiled(style, Choice::Required, Parallel::Several).await;
        let single = compiled(style, Choice::Required, Parallel::One).await;
        let named = compiled(style, Choice::Named("search".to_owned()), Parallel::One).await;
        let cases = [
            (&several, &one, true),
            (&several, &two, true),
            (&several, &wrong, false),
            (&single, &one, true),
            (&single, &two, false),
            (&named, &one, false),
        ];
        for (grammar, answer, allowed) in cases {
            let verdict = grammar.check(answer.as_bytes(), Completeness::Complete);
            assert_eq!(verdict.is_ok(), allowed, "{style:?}: {answer}: {verdict:?}");
        }
        for text in ["", "Hello", "{}"] {
            assert!(several.check(text.as_bytes(), Completeness::Complete).is_err(), "{style:?}: {text}");
        }
    }
}

#[tokio::test]
async fn who_may_call_writes_any_text_that_opens_no_call() {
    let texts = [
        "",
        "Hello, 世界!\n\n",
        "{\"name\": \"Alice\", \"arguments\": {}}",
        "{\"name\": \"weather\", \"age\": 3}",
        "{\"name\": \"weather\"}",
        "[1, {\"name\": 2}]",
        "<tool> a <tool_cal",
        "see [TOOL_CALL",
        "\u{7f}\t\"quoted\" \\ back",
    ];
    for style in STYLES {
        let [one, two, wrong] = calls_of(style);
        let auto = compiled(style, Choice::Auto, Parallel::Several).await;
        let single = compiled(style, Choice::Auto, Parallel::One).await;
        for text in texts {
            for grammar in [&auto, &single] {
                let verdict = grammar.check(text.as_bytes(), Completeness::Complete);
                assert!(verdict.is_ok(), "{style:?}: {text}: {verdict:?}");
            }
        }
        let cases = [
            (&auto, &one, true),
            (&auto, &two, true),
            (&auto, &wrong, false),
            (&single, &one, true),
            (&single, &two, false),
        ];
        for (grammar, answer, allowed) in cases {
            let verdict = grammar.check(answer.as_bytes(), Completeness::Complete);
            assert_eq!(verdict.is_ok(), allowed, "{style:?}: {answer}: {verdict:?}");
        }
    }
}

#[tokio::test]
async fn a_hundred_functions_are_no_trouble() {
    let parameters = json!({"type": "object", "properties": {
        "path": {"type": "string", "description": "Where"}, "depth": {"type": "integer", "minimum": 0},
        "filters": {"type": "array", "items": {"type": "object", "properties": {"key": {"type": "string"},
            "values": {"type": "array", "items": {"type": "number"}}}, "required": ["key"]}},
        "mode": {"enum": ["fast", "exact", null]}}, "required": ["path"]});
    let function =
        |at: usize| Function { name: format!("server.tool_{at}/run"), parameters: parameters.clone() };
    let functions: Vec<Function> = (0..100).map(function).collect();
    for style in STYLES {
        for choice in [Choice::Auto, Choice::Required, Choice::Named("server.tool_7/run".to_owned())] {
            let rules = CallRules { functions: functions.clone(), choice, parallel: Parallel::Several };
            let grammar = compile(rules.grammar(style, &[])).await;
            let text = b"{\"name\": \"server.tool_7/walk\"}";
            let verdict = grammar.check(text, Completeness::Complete);
            assert_eq!(verdict.is_ok(), rules.choice == Choice::Auto, "{style:?}: {verdict:?}");
        }
    }
}

#[test]
fn styles_are_read_off_templates() {
    let cases = [
        ("{{ '<tool_call>\\n{\"name\": ' }} arguments", CallStyle::Hermes),
        ("{{ '[TOOL_CALLS] [' }}", CallStyle::Mistral),
        ("{{ '[TOOL_CALLS]' }}{{ name + '[ARGS]' }}", CallStyle::MistralArgs),
        ("{{ '<|python_tag|>' }}", CallStyle::Llama3),
        ("{{ '<|start_header_id|>' }}{{ '\"parameters\": ' }}", CallStyle::Llama3),
        ("<tool_call><function=name> arguments", CallStyle::Json),
        ("{{ message.content }}", CallStyle::Json),
    ];
    for (source, style) in cases {
        assert_eq!(CallStyle::of_templates(source), style, "{source}");
    }
}
