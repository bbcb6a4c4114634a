//! Answers with calls of functions in them. The first byte chooses the style, the second the cuts, the rest is the text.

use std::sync::Arc;

use lockstep_router::tools::{CallParser, CallStyle, Outcome, Piece};

const STYLES: [CallStyle; 5] =
    [CallStyle::Llama3, CallStyle::Hermes, CallStyle::Mistral, CallStyle::MistralArgs, CallStyle::Json];

/// Content, calls with their arguments, and how it ended.
type Said = (String, Vec<(String, String)>, Outcome);

/// However the text is cut, the same is said, and no more than there is.
pub fn check(data: &[u8]) {
    let [style, cuts, text @ ..] = data else { return };
    let style = STYLES[usize::from(*style) % STYLES.len()];
    let text = String::from_utf8_lossy(text);
    let whole = said(style, std::iter::once(&*text));
    let said_bytes: usize =
        whole.0.len() + whole.1.iter().map(|(_, arguments)| arguments.len()).sum::<usize>();
    assert!(said_bytes <= text.len(), "{style:?} {text:?}: {whole:?}");
    for length in [1, usize::from(*cuts % 7) + 2] {
        let characters: Vec<char> = text.chars().collect();
        let pieces: Vec<String> = characters.chunks(length).map(|piece| piece.iter().collect()).collect();
        assert_eq!(
            said(style, pieces.iter().map(String::as_str)),
            whole,
            "{style:?} {text:?} cut by {length}"
        );
    }
}

fn said<'a>(style: CallStyle, deltas: impl Iterator<Item = &'a str>) -> Said {
    let names: Arc<[String]> = ["weather", "weather_map", "search"].map(str::to_owned).into();
    let mut parser = CallParser::new(style, names);
    let mut pieces: Vec<Piece> = deltas.flat_map(|delta| parser.push(delta)).collect();
    let (rest, outcome) = parser.finish();
    pieces.extend(rest);
    let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for piece in pieces {
        match piece {
            Piece::Content(text) => content.push_str(&text),
            Piece::Call { name } => calls.push((name, String::new())),
            Piece::Arguments(text) => {
                let (_, arguments) = calls.last_mut().expect("arguments are a call's");
                arguments.push_str(&text);
            }
        }
    }
    (content, calls, outcome)
}
