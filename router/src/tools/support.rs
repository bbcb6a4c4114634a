//! What a model knows of tools: its template's skills, its style, the tokens of its syntax.

use lockstep_proto::TokenId;

use super::prompt::TemplateSkills;
use super::style::CallStyle;
use crate::chat::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// What a model knows of tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSupport {
    /// How it writes calls.
    pub style: CallStyle,
    /// The marks of that style that are special tokens.
    pub marks: Vec<(&'static str, TokenId)>,
    /// What its chat template does with tools.
    pub skills: TemplateSkills,
}

impl CallSupport {
    /// Of a model with these files; the style is read off the template unless one is given.
    pub fn of(template: Option<&ChatTemplate>, tokenizer: &Tokenizer, style: Option<CallStyle>) -> Self {
        let sources = template.map(ChatTemplate::sources).unwrap_or_default();
        let style = style.unwrap_or_else(|| CallStyle::of_templates(&sources));
        let special = |mark: &&'static str| {
            let token = tokenizer.id(mark).filter(|token| tokenizer.vocabulary().is_special(*token));
            Some((*mark, token?))
        };
        let marks = style.marks().iter().filter_map(special).collect();
        Self { style, marks, skills: template.map(TemplateSkills::of).unwrap_or_default() }
    }
}
