//! What was typed about the Hub and what its own tools keep in the environment: where it is, where downloaded
//! models are, how to be let in.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::BoolishValueParser;
use lockstep_models::hub::{HubSource, Network, Patience, ProgressKind, Token};
use lockstep_process::telemetry::LogFormat;

use crate::error::LaunchError;

/// What these flags stand under in the help.
const HEADING: &str = "Models from the Hub";

const PUBLIC_HUB: &str = "https://huggingface.co";

/// Where the Hub is and how to be let in. The names in the environment are those of the Hub's own tools.
#[derive(Args, Clone, Debug, Default)]
pub struct HubArgs {
    /// Branch, tag or commit of the model.
    #[arg(long, env, help_heading = HEADING)]
    pub revision: Option<String>,
    /// The one file to serve of a model that comes as GGUF files.
    #[arg(long, env, value_name = "FILE", help_heading = HEADING)]
    pub gguf_file: Option<String>,
    /// Use what is downloaded already and no network.
    #[arg(long, alias = "hf-hub-offline", env = "HF_HUB_OFFLINE", value_parser = BoolishValueParser::new())]
    #[arg(help_heading = HEADING)]
    pub offline: bool,
    /// Where downloaded models are kept; absent: HF_HUB_CACHE, or the folder `hub` in HF_HOME, which is usually
    /// ~/.cache/huggingface.
    #[arg(long, env, value_name = "FOLDER", help_heading = HEADING)]
    pub huggingface_hub_cache: Option<PathBuf>,
    /// The same by its newer name.
    #[arg(long, env, hide = true)]
    pub hf_hub_cache: Option<PathBuf>,
    /// What all tools of the Hub keep.
    #[arg(long, env, hide = true)]
    pub hf_home: Option<PathBuf>,
    /// What all programs of this user keep.
    #[arg(long, env, hide = true)]
    pub xdg_cache_home: Option<PathBuf>,
    /// The secret that opens gated and private models.
    #[arg(long, env, hide_env_values = true, hide = true)]
    pub hf_token: Option<String>,
    /// The same by its older name.
    #[arg(long, env, hide_env_values = true, hide = true)]
    pub hugging_face_hub_token: Option<String>,
    /// A file that holds it.
    #[arg(long, env, hide = true)]
    pub hf_token_path: Option<PathBuf>,
    /// Another Hub.
    #[arg(long, env, hide = true)]
    pub hf_endpoint: Option<String>,
}

impl HubArgs {
    /// The same as the downloader takes it.
    ///
    /// # Errors
    /// When there is a token that cannot be read.
    pub fn source(&self, format: LogFormat) -> Result<HubSource, LaunchError> {
        let home = self.home();
        let cache =
            given(self.hf_hub_cache.as_deref()).or_else(|| given(self.huggingface_hub_cache.as_deref()));
        let cache = cache.unwrap_or_else(|| home.join("hub"));
        Ok(HubSource {
            endpoint: filled(self.hf_endpoint.as_ref()).unwrap_or_else(|| PUBLIC_HUB.to_owned()),
            revision: filled(self.revision.as_ref()).unwrap_or_else(|| "main".to_owned()),
            // Absolute, since roles may be looked at from elsewhere.
            cache: std::path::absolute(&cache).unwrap_or(cache),
            token: self.token(&home)?,
            gguf_file: filled(self.gguf_file.as_ref()),
            network: if self.offline { Network::Offline } else { Network::Online },
            progress: match format {
                LogFormat::Text => ProgressKind::Bars,
                LogFormat::Json => ProgressKind::Lines,
            },
            patience: Patience::USUAL,
        })
    }

    fn home(&self) -> PathBuf {
        given(self.hf_home.as_deref()).unwrap_or_else(|| {
            let usual = || std::env::home_dir().unwrap_or_default().join(".cache");
            given(self.xdg_cache_home.as_deref()).unwrap_or_else(usual).join("huggingface")
        })
    }

    fn token(&self, home: &Path) -> Result<Option<Token>, LaunchError> {
        let named =
            [(&self.hf_token, "HF_TOKEN"), (&self.hugging_face_hub_token, "HUGGING_FACE_HUB_TOKEN")];
        for (secret, origin) in named {
            if let Some(secret) = filled(secret.as_ref()) {
                return Ok(Some(Token { secret, origin: origin.to_owned() }));
            }
        }
        let path = given(self.hf_token_path.as_deref()).unwrap_or_else(|| home.join("token"));
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let origin = path.display().to_string();
                Ok(filled(Some(&text)).map(|secret| Token { secret, origin }))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(LaunchError::TokenFile { path, source }),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// What is set to nothing counts as not set.
fn filled(text: Option<&String>) -> Option<String> {
    text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn given(path: Option<&Path>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty()).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(args: &HubArgs) -> HubSource {
        args.source(LogFormat::Text).expect("it can be read")
    }

    #[test]
    fn models_are_kept_where_the_hubs_own_tools_keep_them() {
        let path = |text: &str| Some(PathBuf::from(text));
        let mut args = HubArgs { xdg_cache_home: path("/xdg"), ..HubArgs::default() };
        assert_eq!(source(&args).cache, Path::new("/xdg/huggingface/hub"));
        args.hf_home = path("/home");
        assert_eq!(source(&args).cache, Path::new("/home/hub"));
        args.huggingface_hub_cache = path("/old");
        assert_eq!(source(&args).cache, Path::new("/old"));
        args.hf_hub_cache = path("/new");
        assert_eq!(source(&args).cache, Path::new("/new"));
        args = HubArgs { hf_hub_cache: path(""), hf_home: path("/home"), ..HubArgs::default() };
        assert_eq!(source(&args).cache, Path::new("/home/hub"));
    }

    #[test]
    fn a_token_is_taken_from_the_environment_or_a_file() {
        let home = tempfile::tempdir().expect("a folder");
        let mut args = HubArgs { hf_home: Some(home.path().to_path_buf()), ..HubArgs::default() };
        let token = |args: &HubArgs| source(args).token.map(|token| (token.secret, token.origin));
        assert_eq!(token(&args), None);
        let file = home.path().join("token");
        std::fs::write(&file, "hf_file\n").expect("it can be written");
        assert_eq!(token(&args), Some(("hf_file".to_owned(), file.display().to_string())));
        args.hugging_face_hub_token = Some("hf_old".to_owned());
        assert_eq!(token(&args), Some(("hf_old".to_owned(), "HUGGING_FACE_HUB_TOKEN".to_owned())));
        args.hf_token = Some(" hf_new\n".to_owned());
        assert_eq!(token(&args), Some(("hf_new".to_owned(), "HF_TOKEN".to_owned())));
        args.hf_token = Some(String::new());
        assert_eq!(token(&args).map(|(secret, _)| secret).as_deref(), Some("hf_old"));
    }

    #[test]
    fn what_is_not_said_is_the_usual() {
        let source = source(&HubArgs { revision: Some(String::new()), ..HubArgs::default() });
        assert_eq!((source.endpoint.as_str(), source.revision.as_str()), (PUBLIC_HUB, "main"));
        assert_eq!((source.network, source.gguf_file), (Network::Online, None));
    }
}
