//! Where a model's chat templates are: files of their own, or a field of `tokenizer_config.json`.

use lockstep_models::{FileError, ModelFiles};
use serde_json::Value;
use thiserror::Error;

use super::template::{DEFAULT, NamedTemplate};

/// A template of its own in this folder is named like its file, without this ending.
const FOLDER: &str = "additional_chat_templates";
const ENDING: &str = ".jinja";

/// The chat templates cannot be read.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not text.
    #[error("read {name}: it is not UTF-8; save it as UTF-8")]
    Encoding {
        /// The file.
        name: String,
    },
    /// The field is of another shape.
    #[error(
        "read chat_template of {name}: found {found}, expected a text or a list of objects with name and template"
    )]
    Shape {
        /// The file.
        name: String,
        /// What is there.
        found: String,
    },
}

/// A model's templates, in the order transformers looks for them: `chat_template.jinja` with the files of
/// `additional_chat_templates/`, `chat_template` of `tokenizer_config.json`, `chat_template.json`. The first
/// place that has any counts. None means that the model cannot chat.
///
/// # Errors
/// When a file is unreadable or of another shape.
pub fn template_sources(
    files: &ModelFiles,
    tokenizer_config: &Value,
) -> Result<Vec<NamedTemplate>, SourceError> {
    let mut templates = Vec::new();
    templates.extend(template_file(files, "chat_template.jinja", DEFAULT)?);
    for name in files.names_within(FOLDER)? {
        if let Some(stem) = name.strip_suffix(ENDING) {
            templates.extend(template_file(files, &format!("{FOLDER}/{name}"), stem)?);
        }
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    let templates = of_field("tokenizer_config.json", tokenizer_config)?;
    if !templates.is_empty() {
        return Ok(templates);
    }
    let name = "chat_template.json";
    of_field(name, &files.open_json(name)?.unwrap_or_default())
}

fn template_file(files: &ModelFiles, path: &str, name: &str) -> Result<Option<NamedTemplate>, SourceError> {
    let Some(bytes) = files.open(path)? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).map_err(|_| SourceError::Encoding { name: path.to_owned() })?;
    Ok(Some(NamedTemplate { name: name.to_owned(), source: text.to_owned() }))
}

/// A text is the only template; a list has several by name.
fn of_field(file: &str, config: &Value) -> Result<Vec<NamedTemplate>, SourceError> {
    let shape = |found: &Value| SourceError::Shape { name: file.to_owned(), found: found.to_string() };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => {
            Ok(vec![NamedTemplate { name: DEFAULT.to_owned(), source: source.clone() }])
        }
        Some(Value::Array(entries)) => entries
            .iter()
            .map(|entry| {
                let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
                let named = text("name").zip(text("template"));
                let (name, source) = named.ok_or_else(|| shape(entry))?;
                Ok(NamedTemplate { name, source })
            })
            .collect(),
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_))) => Err(shape(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A folder with these files.
    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelFiles) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let files = ModelFiles::Folder(folder.path().to_path_buf());
        (folder, files)
    }

    fn sources(files: &[(&str, &str)], config: &Value) -> Vec<(String, String)> {
        let (_folder, files) = folder(files);
        let templates = template_sources(&files, config).unwrap();
        templates.into_iter().map(|template| (template.name, template.source)).collect()
    }

    fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect()
    }

    #[test]
    fn a_file_of_its_own_beats_the_config_and_the_config_beats_the_older_file() {
        let own = ("chat_template.jinja", "own");
        let old = ("chat_template.json", r#"{"chat_template": "old"}"#);
        let config = json!({"chat_template": "config"});
        assert_eq!(sources(&[own, old], &config), named(&[("default", "own")]));
        assert_eq!(sources(&[old], &config), named(&[("default", "config")]));
        assert_eq!(sources(&[old], &json!({})), named(&[("default", "old")]));
        assert_eq!(sources(&[], &json!({"chat_template": null})), []);
    }

    #[test]
    fn several_templates_come_as_files_or_as_a_list() {
        let files = [
            ("chat_template.jinja", "own"),
            ("additional_chat_templates/tool_use.jinja", "tools"),
            ("additional_chat_templates/rag.jinja", "documents"),
            ("additional_chat_templates/README.md", "no template"),
        ];
        let expected = [("default", "own"), ("rag", "documents"), ("tool_use", "tools")];
        assert_eq!(sources(&files, &json!({"chat_template": "config"})), named(&expected));
        let list = json!({"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]});
        assert_eq!(sources(&[], &list), named(&[("tool_use", "a"), ("default", "b")]));
    }

    #[test]
    fn another_shape_is_an_error_that_shows_it() {
        let (_folder, files) = folder(&[]);
        for config in
            [json!({"chat_template": {"default": "a"}}), json!({"chat_template": [{"name": "a"}]})]
        {
            let error = template_sources(&files, &config).unwrap_err().to_string();
            assert!(error.contains("tokenizer_config.json: found {"), "{error}");
        }
        std::fs::write(_folder.path().join("chat_template.jinja"), [0xFF]).unwrap();
        let error = template_sources(&files, &json!({})).unwrap_err().to_string();
        assert_eq!(error, "read chat_template.jinja: it is not UTF-8; save it as UTF-8");
    }
}
