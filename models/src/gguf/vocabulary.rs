//! The tokens of a GGUF file, their kinds, and those with a role.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::GgufError;
use super::metadata::Metadata;

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";

/// What a token is for, by ggml's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for what no token stands for.
    Unknown,
    /// A mark that is no text.
    Control,
    /// A piece of text that is never cut.
    UserDefined,
    /// Fills the vocabulary.
    Unused,
    /// One byte.
    Byte,
}

/// Tokens with a role; not every model has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Begin,
    End,
    EndOfTurn,
    EndOfMessage,
    Unknown,
    Padding,
}

const ROLES: &[(Role, &str)] = &[
    (Role::Begin, "tokenizer.ggml.bos_token_id"),
    (Role::End, "tokenizer.ggml.eos_token_id"),
    (Role::EndOfTurn, "tokenizer.ggml.eot_token_id"),
    (Role::EndOfMessage, "tokenizer.ggml.eom_token_id"),
    (Role::Unknown, "tokenizer.ggml.unknown_token_id"),
    (Role::Padding, "tokenizer.ggml.padding_token_id"),
];

/// Tokens by id.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<Cow<'a, str>>,
    kinds: Vec<TokenKind>,
    ids: BTreeMap<Cow<'a, str>, usize>,
    roles: Vec<(Role, usize)>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, GgufError> {
        let tokens = Metadata::require(TOKENS, metadata.texts(TOKENS)?, "a list of tokens")?;
        let mut ids = BTreeMap::new();
        let mut named = Vec::with_capacity(tokens.len());
        for (id, token) in tokens.into_iter().enumerate() {
            let token = if token.is_empty() { Cow::from(format!("[EMPTY_{id}]")) } else { token.into() };
            if ids.insert(token.clone(), id).is_some() {
                return Err(GgufError::Duplicate { what: "token", name: token.into_owned() });
            }
            named.push(token);
        }
        let kinds = match metadata.unsigneds(KINDS)? {
            None => vec![TokenKind::Normal; named.len()],
            Some(numbers) => {
                check_length(KINDS, numbers.len(), named.len())?;
                numbers.into_iter().map(kind).collect()
            }
        };
        let roles = roles(metadata, named.len())?;
        Ok(Self { tokens: named, kinds, ids, roles })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn id(&self, token: &str) -> Option<usize> {
        self.ids.get(token).copied()
    }

    /// What a token is for. One with a role that is no text is a mark, whatever the file says.
    pub(super) fn kind(&self, id: usize) -> TokenKind {
        let is_mark = self.roles.iter().any(|(role, found)| *found == id && *role != Role::Unknown);
        match self.kinds.get(id) {
            Some(TokenKind::Normal) | None if is_mark => TokenKind::Control,
            Some(kind) => *kind,
            None => TokenKind::Normal,
        }
    }

    pub(super) fn with_role(&self, role: Role) -> Option<usize> {
        self.roles.iter().find(|(found, _)| *found == role).map(|(_, id)| *id)
    }
}

/// The tokens that have a role, by the key that says so.
fn roles(metadata: &Metadata, count: usize) -> Result<Vec<(Role, usize)>, GgufError> {
    let mut roles = Vec::new();
    for (role, key) in ROLES {
        let Some(found) = metadata.unsigned(key)? else { continue };
        // -1, in 32 bits, is what some converters write for "none".
        if found == u64::from(u32::MAX) {
            continue;
        }
        let id = usize::try_from(found).ok().filter(|id| *id < count);
        let id = id.ok_or_else(|| GgufError::Invalid {
            what: (*key).to_owned(),
            found: found.to_string(),
            expected: format!("less than {count}, the number of tokens"),
        })?;
        roles.push((*role, id));
    }
    Ok(roles)
}

/// An error where a list does not have one element for each token.
pub(super) fn check_length(key: &str, found: usize, expected: usize) -> Result<(), GgufError> {
    if found == expected {
        return Ok(());
    }
    Err(GgufError::Invalid {
        what: format!("the length of {key}"),
        found: found.to_string(),
        expected: format!("{expected}, one for each token"),
    })
}

fn kind(number: u64) -> TokenKind {
    match number {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    }
}
