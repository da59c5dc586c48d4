//! The names of vendors, and the few other ways in which their models are spelt.

/// Other names of vendors.
const ALIASES: [(&str, &str); 4] = [
    ("azure_openai", "azure"),
    ("fireworks", "fireworks_ai"),
    ("google", "gemini"),
    ("together", "together_ai"),
];

/// Hosts whose prices are the vendor's list prices. Not here: hosts of a region that costs more, and Azure, where a model
/// goes by whatever name its deployment was given.
const HOSTS: [(&str, &str); 19] = [
    ("api.anthropic.com", "anthropic"),
    ("api.cerebras.ai", "cerebras"),
    ("api.cohere.ai", "cohere"),
    ("api.cohere.com", "cohere"),
    ("api.deepinfra.com", "deepinfra"),
    ("api.deepseek.com", "deepseek"),
    ("api.fireworks.ai", "fireworks_ai"),
    ("api.groq.com", "groq"),
    ("api.minimax.io", "minimax"),
    ("api.mistral.ai", "mistral"),
    ("api.moonshot.ai", "moonshot"),
    ("api.openai.com", "openai"),
    ("api.sambanova.ai", "sambanova"),
    ("api.together.ai", "together_ai"),
    ("api.together.xyz", "together_ai"),
    ("api.x.ai", "xai"),
    ("api.z.ai", "zai"),
    ("dashscope-intl.aliyuncs.com", "dashscope"),
    ("generativelanguage.googleapis.com", "gemini"),
];

/// The vendor behind the host of a base URL, where its list prices hold. `None` for any other host: an unknown server's
/// prices are unknown, whatever its models are called.
///
/// The host is compared without regard to case, and has no port in it.
#[must_use]
pub fn vendor_of_host(host: &str) -> Option<&'static str> {
    HOSTS.iter().find(|(known, _)| known.eq_ignore_ascii_case(host)).map(|(_, vendor)| *vendor)
}

/// The vendor's name in the table.
pub(super) fn canonical(vendor: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == vendor).map_or(vendor, |(_, name)| name)
}

/// The model's name in the table, when it is spelt in one of the other documented ways.
pub(super) fn bare_model<'m>(vendor: &str, canonical: &str, model: &'m str) -> Option<&'m str> {
    let prefixed = |prefix: &str| model.strip_prefix(prefix)?.strip_prefix('/');
    let own = prefixed(vendor).or_else(|| prefixed(canonical));
    match canonical {
        "gemini" => own.or_else(|| prefixed("models")),
        "openai" => own.or_else(|| fine_tuned(model)),
        _ => own,
    }
}

/// `ft:BASE` of `ft:BASE:organisation:name:id`.
fn fine_tuned(model: &str) -> Option<&str> {
    let base = model.strip_prefix("ft:")?;
    let end = base.find(':')?;
    Some(&model[.."ft:".len() + end])
}
