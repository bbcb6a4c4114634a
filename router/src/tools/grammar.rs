//! What an answer may be: text that opens no call, or calls whose arguments keep to their schemas.
//!
//! Written twice, in llguidance's Lark: for tokens, where a mark may be a token of its own, and for bytes, where it is
//! its name.

use std::fmt::Write;

use lockstep_proto::TokenId;
use serde_json::Value;

use super::object::{canonical_head, escaped, head_regex};
use super::rules::{CallRules, Choice, Function, Parallel};
use super::style::CallStyle;
use super::{hermes, mistral};
use crate::grammar::{CallGrammar, Grammar};

/// White space before a closing brace that a model sets in its own way.
const TAIL: &str = r"/[\x20\n\r\t]{0,20}\}/";

/// Who reads the grammar.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// Tokens of these ids are marks.
    Tokens(&'a [(&'static str, TokenId)]),
    Bytes,
}

impl CallRules {
    /// The grammar of an answer in `style`; `marks` are those marks of the style that are special tokens.
    pub fn grammar(&self, style: CallStyle, marks: &[(&'static str, TokenId)]) -> Grammar {
        let write = |form| Writer { rules: self, style, form, text: String::new() }.lark();
        Grammar::Calls(CallGrammar {
            tokens: write(Form::Tokens(marks)),
            bytes: write(Form::Bytes),
            schemas: self.callable().map(|function| function.parameters.to_string()).collect(),
            shown: marks.iter().map(|(_, token)| *token).collect(),
        })
    }
}

struct Writer<'a> {
    rules: &'a CallRules,
    style: CallStyle,
    form: Form<'a>,
    text: String,
}

impl Writer<'_> {
    fn lark(mut self) -> String {
        let is_auto = self.rules.choice == Choice::Auto;
        let mut answers = Vec::new();
        if is_auto {
            self.text_rule();
            answers.push("[TEXT]".to_owned());
            self.opened_late(&mut answers);
            self.opened_bare(&mut answers);
        } else {
            answers.push(self.forced());
        }
        self.call_rules();
        self.rule("start", &answers.join(" | "));
        self.text
    }

    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a text does not fail.
        let _ = writeln!(self.text, "{name}: {body}");
    }

    fn functions(&self) -> impl Iterator<Item = (usize, &Function)> {
        self.rules.callable().enumerate()
    }

    /// A mark: its token, or its name.
    fn mark(&self, name: &str) -> String {
        match self.token(name) {
            Some(token) => format!("<[{}]>", token.0),
            None => quoted(name),
        }
    }

    fn token(&self, name: &str) -> Option<TokenId> {
        match self.form {
            Form::Tokens(marks) => marks.iter().find(|(mark, _)| *mark == name).map(|(_, token)| *token),
            Form::Bytes => None,
        }
    }

    /// Ordinary text: all that the parser takes for content as a whole.
    fn text_rule(&mut self) {
        let mut body = "/(?s:.+)/".to_owned();
        if let Some(mark) = self.style.mark() {
            let _ = write!(body, " & ~/(?s:.*){}(?s:.*)/", escaped(mark));
        }
        body.push_str(&self.no_bare_head());
        self.rule("TEXT", &body);
    }

    /// What keeps a text from being a call that nothing marks.
    fn no_bare_head(&self) -> String {
        let names: Vec<String> = self.functions().map(|(_, function)| escaped(&function.name)).collect();
        let head = head_regex(&names.join("|"));
        match self.style {
            CallStyle::Llama3 => format!(" & ~/{head}\\{{(?s:.*)/"),
            CallStyle::Json => format!(" & ~/({LIST_OPENS})?{head}\\{{(?s:.*)/"),
            CallStyle::Hermes | CallStyle::Mistral | CallStyle::MistralArgs => String::new(),
        }
    }

    /// Calls behind a mark, anywhere.
    fn opened_late(&mut self, answers: &mut Vec<String>) {
        let Some(mark) = self.style.mark() else { return };
        match self.token(mark) {
            Some(_) => answers.push(format!("[TEXT] {} calls", self.mark(mark))),
            None => {
                // A lexeme that could go on would keep others from ending.
                let body = format!("/(?s:.*)/{}", self.no_bare_head());
                self.rule("BEFORE", &body);
                self.rule("lead[lazy]", &format!("BEFORE {}", quoted(mark)));
                answers.push("lead calls".to_owned());
            }
        }
    }

    /// Calls that an answer begins with, as the model spaces them.
    fn opened_bare(&mut self, answers: &mut Vec<String>) {
        if !self.style.begins_bare() {
            return;
        }
        let each = |before: &str| {
            let one = |(at, function): (usize, &Function)| {
                format!("/{before}{}/ @f{at} TAIL", head_regex(&escaped(&function.name)))
            };
            self.functions().map(one).collect::<Vec<_>>().join(" | ")
        };
        let (bare, listed) = (each(""), each(LIST_OPENS));
        self.rule("TAIL", TAIL);
        self.rule("bare", &bare);
        let more = match self.rules.parallel {
            Parallel::One => "",
            Parallel::Several => "(COMMA bare)*",
        };
        match (self.style, self.rules.parallel) {
            (CallStyle::Llama3, Parallel::Several) => answers.push("bare (\"; \" call)*".to_owned()),
            (CallStyle::Json, Parallel::Several | Parallel::One) => {
                self.rule("COMMA", COMMA);
                self.rule("LIST_CLOSES", LIST_CLOSES);
                self.rule("listed", &listed);
                answers.push("bare".to_owned());
                answers.push(format!("listed {more} LIST_CLOSES"));
            }
            (CallStyle::Llama3, Parallel::One)
            | (CallStyle::Hermes | CallStyle::Mistral | CallStyle::MistralArgs, _) => {
                answers.push("bare".to_owned());
            }
        }
    }

    /// Calls and nothing else, as the templates show them.
    fn forced(&mut self) -> String {
        match self.style {
            CallStyle::Llama3 => "calls".to_owned(),
            CallStyle::Json => match self.rules.parallel {
                Parallel::One => "call".to_owned(),
                Parallel::Several => "call | \"[\" call (\", \" call)* \"]\"".to_owned(),
            },
            CallStyle::Hermes | CallStyle::Mistral | CallStyle::MistralArgs => {
                let mark = self.mark(self.style.mark().unwrap_or_default());
                format!("{mark} calls")
            }
        }
    }

    /// `call`: one call without its mark; `calls`: all of them from behind the first mark on.
    fn call_rules(&mut self) {
        let each: Vec<String> =
            self.functions().map(|(at, function)| self.call(at, &function.name)).collect();
        self.rule("call", &each.join(" | "));
        let more = match self.style {
            CallStyle::Llama3 => "\"; \" call".to_owned(),
            CallStyle::Mistral => "\", \" call".to_owned(),
            CallStyle::Hermes => format!("\"\\n\" {} call", self.mark(hermes::OPEN)),
            CallStyle::MistralArgs => format!("{} call", self.mark(mistral::OPEN)),
            // Its calls are in a list or alone: `forced` says how.
            CallStyle::Json => return,
        };
        let all = match self.rules.parallel {
            Parallel::One => "call".to_owned(),
            Parallel::Several => format!("call ({more})*"),
        };
        let body = if self.style == CallStyle::Mistral { format!("/ ?\\[/ {all} \"]\"") } else { all };
        self.rule("calls", &body);
    }

    fn call(&self, at: usize, name: &str) -> String {
        let object = |arguments| quoted(&canonical_head(name, arguments));
        match self.style {
            CallStyle::Llama3 => format!("{} @f{at} \"}}\"", object("parameters")),
            CallStyle::Mistral | CallStyle::Json => format!("{} @f{at} \"}}\"", object("arguments")),
            CallStyle::Hermes => {
                let head = quoted(&format!("\n{}", canonical_head(name, "arguments")));
                format!("{head} @f{at} \"}}\\n\" {}", self.mark(hermes::CLOSE))
            }
            CallStyle::MistralArgs => format!("{} {} @f{at}", quoted(name), self.mark(mistral::ARGS)),
        }
    }
}

/// What stands before the first call of a list, between two, and behind the last.
const LIST_OPENS: &str = r"[\x20\n\r\t]*\[";
const COMMA: &str = r"/[\x20\n\r\t]{0,20},/";
const LIST_CLOSES: &str = r"/[\x20\n\r\t]{0,20}\]/";

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
