//! Which endpoint to talk to, from the environment.

use std::env::var;
use std::sync::Arc;

use loomflow::Model;
use loomflow::prelude::*;

/// What to set, for whoever has set nothing.
pub(crate) const HELP: &str = "\
No endpoint is given. Set these and run it again:

  LOOMFLOW_MODEL      the model's name, such as gpt-4.1-mini or claude-sonnet-4-5 (required)
  LOOMFLOW_API_KEY    the key; leave it out for a local server that wants none
  LOOMFLOW_PROVIDER   openai (default; also for every compatible server) or anthropic
  LOOMFLOW_BASE_URL   where it is, such as http://127.0.0.1:11434/v1 (default: the provider's own;
                      for anthropic the server's root, without /v1)

For example, on a local server:

  LOOMFLOW_BASE_URL=http://127.0.0.1:11434/v1 LOOMFLOW_MODEL=qwen3 cargo run -p any-provider -- \"Hello\"";

/// The model that the environment names; `None` when it names none.
///
/// # Errors
///
/// Whatever does not fit together, named.
pub(crate) fn model() -> Result<Option<Arc<dyn Model>>> {
    let set = |name: &str| var(name).ok().filter(|value| !value.trim().is_empty());
    let Some(name) = set("LOOMFLOW_MODEL") else { return Ok(None) };
    let (base_url, provider) = (set("LOOMFLOW_BASE_URL"), set("LOOMFLOW_PROVIDER"));
    // The key itself is never read here: it is resolved when a call is made, for the tenant who makes it.
    let key = match set("LOOMFLOW_API_KEY") {
        Some(_) => ApiKey::from(SecretRef::new("LOOMFLOW_API_KEY")?),
        None if base_url.is_some() => ApiKey::none(),
        None => {
            let why = "LOOMFLOW_API_KEY is not set, and the provider's own endpoint wants a key; set it, or set \
                       LOOMFLOW_BASE_URL to a server that wants none";
            return Err(Error::new(ErrorKind::Config, why));
        }
    };
    Ok(Some(match provider.as_deref().unwrap_or("openai") {
        "openai" => {
            let mut model = OpenAiModel::builder(name, key);
            if let Some(url) = base_url {
                model = model.with_base_url(url);
            }
            Arc::new(model.build()?)
        }
        "anthropic" => {
            let mut model = AnthropicModel::builder(name, key);
            if let Some(url) = base_url {
                model = model.with_base_url(url);
            }
            Arc::new(model.build()?)
        }
        other => {
            let why = format!("LOOMFLOW_PROVIDER is {other:?}; it can be openai or anthropic");
            return Err(Error::new(ErrorKind::Config, why));
        }
    }))
}
