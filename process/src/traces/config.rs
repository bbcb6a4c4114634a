//! What was said of spans.

use super::TraceError;

/// The base of the names services have where none is given.
const SERVICE: &str = "lockstep";

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The router, which decides what is sampled.
    Router,
    /// A rank, which follows.
    Shard {
        /// Its place in the group.
        rank: u32,
    },
}

/// Where spans go and which.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// A gRPC receiver of OTLP, as `http://host:port`; without one nothing is traced.
    pub endpoint: Option<String>,
    /// `service.name`.
    pub service: String,
    /// `service.instance.id`.
    pub instance: String,
    /// The share of traces that are sampled among those whose client has not decided; 0 to 1.
    pub sampling_ratio: f64,
}

impl TraceConfig {
    /// What `role` does with `endpoint` and `service` as typed.
    pub fn new(role: Role, endpoint: Option<String>, service: Option<String>, sampling_ratio: f64) -> Self {
        let endpoint = endpoint.filter(|endpoint| !endpoint.is_empty()).map(with_scheme);
        let service = role.service(service);
        Self { endpoint, service, instance: role.instance(), sampling_ratio }
    }

    /// Checks what makes no sense whatever there is at the endpoint.
    ///
    /// # Errors
    /// When the ratio is none.
    pub fn check(&self) -> Result<(), TraceError> {
        if (0.0..=1.0).contains(&self.sampling_ratio) {
            Ok(())
        } else {
            Err(TraceError::Ratio { found: self.sampling_ratio })
        }
    }
}

impl Role {
    /// The router has the name that was given; ranks, which were given the same, have one beside it.
    fn service(self, given: Option<String>) -> String {
        match self {
            Self::Router => given.unwrap_or_else(|| format!("{SERVICE}.router")),
            Self::Shard { .. } => {
                let given = given.as_deref().unwrap_or(SERVICE);
                format!("{}.shard", given.strip_suffix(".router").unwrap_or(given))
            }
        }
    }

    fn instance(self) -> String {
        match self {
            Self::Router => "router".to_owned(),
            Self::Shard { rank } => format!("shard-{rank}"),
        }
    }
}

/// Many write `host:port`.
fn with_scheme(endpoint: String) -> String {
    if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(role: Role, endpoint: &str, service: Option<&str>) -> TraceConfig {
        TraceConfig::new(role, Some(endpoint.to_owned()), service.map(str::to_owned), 1.0)
    }

    #[test]
    fn ranks_have_a_name_beside_the_routers() {
        let shard = Role::Shard { rank: 1 };
        let cases = [
            (Role::Router, Some("shop.router"), "shop.router", "router"),
            (shard, Some("shop.router"), "shop.shard", "shard-1"),
            (Role::Router, Some("shop"), "shop", "router"),
            (shard, Some("shop"), "shop.shard", "shard-1"),
        ];
        for (role, given, service, instance) in cases {
            let config = config(role, "http://a:1", given);
            assert_eq!((config.service.as_str(), config.instance.as_str()), (service, instance));
        }
    }

    #[test]
    fn an_address_without_a_scheme_is_plain() {
        assert_eq!(config(Role::Router, "a:4317", None).endpoint.as_deref(), Some("http://a:4317"));
    }
}
