//! What the families' config.json files share, and the model they describe where they say no more.

use std::cell::Cell;
use std::collections::BTreeMap;

use lockstep_models::{FileError, ModelFiles};
use lockstep_proto::Tokens;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::rope_config::RopeConfig;
use super::{CONFIG, above_zero, invalid, unsupported};
use crate::decoder::choices::{
    AttentionChoices, Bias, Choices, ExpertChoices, ExpertNames, Head, LayerChoices, LayerMlp, LayerRope,
    MlpChoices, MlpKind, NormChoices, NormKind, NormPlacement, NormWeight, QkNorm, QkvProjection,
    RoutingWeights, Scales, ScoreScale,
};
use crate::decoder::spec::{ModelSpec, Shape, SpecError};
use crate::ops::activation::Activation;

/// A config.json: the fields most families have, and all others.
pub(super) struct Config {
    pub(super) fields: Fields,
    whole: Value,
    place: String,
    /// Whether the family looked at the window.
    heeds_window: Cell<bool>,
}

/// Fields most families have.
#[derive(Deserialize)]
pub(super) struct Fields {
    #[serde(flatten)]
    pub(super) sizes: Sizes,
    #[serde(flatten)]
    pub(super) rope: RopeConfig,
    #[serde(flatten)]
    pub(super) switches: Switches,
}

#[derive(Deserialize)]
pub(super) struct Sizes {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    rms_norm_eps: Option<f64>,
    norm_epsilon: Option<f64>,
}

/// What a config.json asks for beyond sizes. A family that does not heed one of these may not be asked for it:
/// see [`Config::check_heeded`].
#[derive(Deserialize)]
pub(super) struct Switches {
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<u32>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
}

impl Config {
    /// Reads config.json.
    pub(super) fn read(files: &ModelFiles) -> Result<Self, SpecError> {
        let whole: Value = files.require_json(CONFIG)?;
        let place = files.to_string();
        if let Some(found) = whole.get("quantization_config").filter(|found| !found.is_null()) {
            let method = found.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
            return Err(unsupported("quantization_config", method, "null: weights in bf16, f16 or f32"));
        }
        Ok(Self { fields: parse(&whole, &place)?, whole, place, heeds_window: Cell::new(false) })
    }

    /// The names under `architectures`.
    pub(super) fn architectures(files: &ModelFiles) -> Result<Vec<String>, SpecError> {
        #[derive(Deserialize)]
        struct Named {
            #[serde(default)]
            architectures: Vec<String>,
        }
        Ok(files.require_json::<Named>(CONFIG)?.architectures)
    }

    /// Whether a field is there, be it null.
    pub(super) fn names(&self, field: &str) -> bool {
        self.whole.get(field).is_some()
    }

    /// A family's own fields.
    pub(super) fn own<T: DeserializeOwned>(&self) -> Result<T, SpecError> {
        parse(&self.whole, &self.place)
    }

    /// A model whose config.json says no more than its sizes: every family begins here and changes what it
    /// does differently. The head is tied where nothing is said and `head` says so.
    pub(super) fn plain(&self, family: &'static str, head: Head) -> Result<ModelSpec, SpecError> {
        self.plain_with(family, head, self.activation()?)
    }

    /// As [`Self::plain`], with an activation that config.json does not decide.
    pub(super) fn plain_with(
        &self,
        family: &'static str,
        head: Head,
        activation: Activation,
    ) -> Result<ModelSpec, SpecError> {
        let Sizes { num_hidden_layers: layers, num_attention_heads: query_heads, .. } = self.fields.sizes;
        let sizes = &self.fields.sizes;
        let head_width = sizes.head_dim.or(sizes.hidden_size.checked_div(query_heads)).unwrap_or(0);
        let (rope, max_positions) =
            self.fields.rope.read(head_width, sizes.max_position_embeddings, RopeConfig::DEFAULT_THETA)?;
        let layer = LayerChoices { window: None, rope: LayerRope::Global, mlp: LayerMlp::Dense };
        Ok(ModelSpec {
            family,
            stored: BTreeMap::new(),
            shape: Shape {
                hidden: sizes.hidden_size,
                layers,
                query_heads,
                kv_heads: sizes.num_key_value_heads.unwrap_or(query_heads),
                head_width,
                intermediate: sizes.intermediate_size,
                experts: None,
                vocabulary: sizes.vocab_size,
                max_positions,
                norm_epsilon: sizes
                    .rms_norm_eps
                    .or(sizes.norm_epsilon)
                    .ok_or_else(|| invalid("rms_norm_eps", "null", "a number"))?,
            },
            choices: Choices {
                attention: PLAIN_ATTENTION,
                mlp: MlpChoices { activation, ..PLAIN_MLP },
                norms: NormChoices {
                    kind: NormKind::RootMeanSquare,
                    weight: NormWeight::Plain,
                    placement: NormPlacement::Pre,
                },
                rope,
                local_rope: None,
                scales: Scales::NONE,
                head: match self.fields.switches.tie_word_embeddings {
                    Some(true) => Head::Tied,
                    Some(false) => Head::Separate,
                    None => head,
                },
            },
            // Far more layers than any model has are refused once the sizes are checked.
            layers: vec![layer; layers.min(Shape::MAX_LAYERS)],
        })
    }

    fn activation(&self) -> Result<Activation, SpecError> {
        match self.fields.switches.hidden_act.as_deref() {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some(other) => Err(unsupported("hidden_act", other, "silu or gelu_pytorch_tanh")),
        }
    }

    /// `attention_bias`, where a family heeds it.
    pub(super) fn attention_bias(&self) -> Bias {
        bias(self.fields.switches.attention_bias)
    }

    /// `mlp_bias`, where a family heeds it.
    pub(super) fn mlp_bias(&self) -> Bias {
        bias(self.fields.switches.mlp_bias)
    }

    /// The window, where a family heeds `sliding_window` in all layers.
    fn window(&self) -> Result<Option<Tokens>, SpecError> {
        let Switches { sliding_window, use_sliding_window, .. } = self.fields.switches;
        match sliding_window.filter(|_| use_sliding_window != Some(false)) {
            Some(0) => Err(invalid("sliding_window", 0, "null or a number from 1")),
            window => Ok(window.map(Tokens)),
        }
    }

    /// Gives the window to the layers `layer_types` names; where it names none, to those `slides` says do.
    pub(super) fn slide(
        &self,
        spec: &mut ModelSpec,
        slides: impl Fn(usize) -> bool,
    ) -> Result<(), SpecError> {
        self.heeds_window.set(true);
        let Some(window) = self.window()? else { return Ok(()) };
        let named = self.fields.switches.layer_types.as_deref();
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            let slides = match named.map(|types| types.get(index).map_or("(none)", String::as_str)) {
                None => slides(index),
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                Some(other) => {
                    return Err(unsupported("layer_types", other, "sliding_attention or full_attention"));
                }
            };
            layer.window = slides.then_some(window);
        }
        Ok(())
    }

    /// Gives layers that see a window a rotation of their own, whose base is `theta` where none is named.
    pub(super) fn turn_windows_otherwise(&self, spec: &mut ModelSpec, theta: f64) -> Result<(), SpecError> {
        spec.choices.local_rope = Some(self.fields.rope.read_local(spec.shape.head_width, theta)?);
        for layer in spec.layers.iter_mut().filter(|layer| layer.window.is_some()) {
            layer.rope = LayerRope::Local;
        }
        Ok(())
    }

    /// `attn_logit_softcapping` and `final_logit_softcapping`, where a family heeds them.
    pub(super) fn softcaps(&self) -> Result<(Option<f64>, Option<f64>), SpecError> {
        let Switches { attn_logit_softcapping, final_logit_softcapping, .. } = self.fields.switches;
        let cap = |field, cap: Option<f64>| cap.map(|cap| above_zero(field, Some(cap))).transpose();
        Ok((
            cap("attn_logit_softcapping", attn_logit_softcapping)?,
            cap("final_logit_softcapping", final_logit_softcapping)?,
        ))
    }

    /// An error where config.json asks for what the family did not build in.
    pub(super) fn check_heeded(&self, spec: &ModelSpec) -> Result<(), SpecError> {
        let (switches, choices) = (&self.fields.switches, &spec.choices);
        let attention = choices.attention;
        if switches.attention_bias == Some(true) && attention.qkv_bias == Bias::Absent {
            return Err(unsupported("attention_bias", "true", "false"));
        }
        if switches.mlp_bias == Some(true) && choices.mlp.bias == Bias::Absent {
            return Err(unsupported("mlp_bias", "true", "false"));
        }
        if let Some(window) = self.window()?.filter(|_| !self.heeds_window.get()) {
            let types = switches.layer_types.as_deref().unwrap_or(&[]);
            let asked = types.iter().any(|kind| kind == "sliding_attention")
                || types.is_empty() && switches.use_sliding_window == Some(true);
            if asked {
                return Err(unsupported("sliding_window", window.0, "null"));
            }
        }
        let caps = [
            ("attn_logit_softcapping", switches.attn_logit_softcapping, attention.softcap),
            ("final_logit_softcapping", switches.final_logit_softcapping, choices.scales.logits_softcap),
        ];
        match caps.into_iter().find(|(_, asked, heeded)| asked.is_some() && heeded.is_none()) {
            Some((field, asked, _)) => Err(unsupported(field, asked.unwrap_or_default(), "null")),
            None => Ok(()),
        }
    }
}

const PLAIN_ATTENTION: AttentionChoices = AttentionChoices {
    qkv: QkvProjection::Separate,
    qkv_bias: Bias::Absent,
    output_bias: Bias::Absent,
    qk_norm: QkNorm::Absent,
    score_scale: ScoreScale::HeadWidth,
    softcap: None,
};

const PLAIN_MLP: MlpChoices = MlpChoices {
    kind: MlpKind::Gated,
    activation: Activation::Silu,
    bias: Bias::Absent,
    experts: ExpertChoices { names: ExpertNames::Long, weights: RoutingWeights::SoftmaxOfChosen },
};

fn bias(switch: Option<bool>) -> Bias {
    if switch == Some(true) { Bias::Present } else { Bias::Absent }
}

fn parse<T: DeserializeOwned>(whole: &Value, place: &str) -> Result<T, SpecError> {
    T::deserialize(whole).map_err(|source| {
        FileError::Parse { name: CONFIG.to_owned(), place: place.to_owned(), source }.into()
    })
}
