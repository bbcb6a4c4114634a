//! Special tokens as a template may write them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Every name of a special token ends so.
const ENDING: &str = "_token";

/// Special tokens a template may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// The beginning of a sequence, `bos_token`.
    pub bos: Option<String>,
    /// The end of a sequence, `eos_token`.
    pub eos: Option<String>,
    /// Others by the names templates have for them, such as `pad_token`.
    pub others: BTreeMap<String, String>,
}

impl TemplateTokens {
    /// Reads `tokenizer_config.json`, and `special_tokens_map.json` for what it does not say. A token is
    /// written as a text or as an object with its text under `content`; `null` means there is none.
    pub fn from_files(tokenizer_config: &Value, special_tokens_map: &Value) -> Self {
        let mut named = BTreeMap::new();
        for (name, value) in
            [special_tokens_map, tokenizer_config].into_iter().filter_map(Value::as_object).flatten()
        {
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            match text {
                Some(text) if name.ends_with(ENDING) => {
                    named.insert(name.clone(), text.to_owned());
                }
                None if value.is_null() => {
                    named.remove(name);
                }
                Some(_) | None => {}
            }
        }
        Self { bos: named.remove("bos_token"), eos: named.remove("eos_token"), others: named }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_texts_or_objects_and_the_config_has_the_last_word() {
        let config = json!({
            "bos_token": {"content": "<s>", "lstrip": false, "special": true}, "pad_token": null,
            "image_token": "<image>", "add_bos_token": true, "tokenizer_class": "Any"
        });
        let map = json!({"bos_token": "other", "eos_token": {"content": "</s>"}, "pad_token": "<pad>", "unk_token": "<unk>"});
        let tokens = TemplateTokens::from_files(&config, &map);
        assert_eq!((tokens.bos.as_deref(), tokens.eos.as_deref()), (Some("<s>"), Some("</s>")));
        let others: Vec<(&str, &str)> =
            tokens.others.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(others, [("image_token", "<image>"), ("unk_token", "<unk>")]);
    }
}
