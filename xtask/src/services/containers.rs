//! `fixtures/<service>/compose.yml`: the same server in a container, for machines that `cargo xtask services` has no programs for.

use std::path::Path;

use super::{ALL, Service};

/// Made of npm, which every machine has.
const WITHOUT: [&str; 1] = ["models"];

/// What is wrong with a compose file; `None` when it pins its image and names the variable.
fn fault(text: &str, env_override: &str) -> Option<String> {
    let images: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("image:")).collect();
    if images.is_empty() {
        return Some("it has no image".to_owned());
    }
    let pinned = |image: &&&str| {
        // A port's colon comes before the last slash, a tag's behind it. `7` and `latest` name another image each month.
        let name = image.trim().rsplit('/').next().unwrap_or_default();
        name.split_once(':')
            .is_some_and(|(_, tag)| tag.split('.').count() >= 3 && tag.bytes().any(|b| b.is_ascii_digit()))
    };
    if let Some(image) = images.iter().find(|image| !pinned(image)) {
        return Some(format!("{} is not pinned to a release", image.trim()));
    }
    let told = text
        .lines()
        .any(|line| line.starts_with("#   export ") && line.contains(&format!("{env_override}=")));
    (!told).then(|| format!("no comment says what to put into {env_override}"))
}

fn faults(root: &Path) -> Vec<String> {
    let of = |name: &str, env_override: &str| {
        let path = root.join("fixtures").join(name).join("compose.yml");
        let fault = match std::fs::read_to_string(&path) {
            Ok(text) => fault(&text, env_override),
            Err(error) => Some(error.to_string()),
        };
        fault.map(|fault| format!("{}: {fault}", path.display()))
    };
    let with = |service: &&&dyn Service| !WITHOUT.contains(&service.name());
    ALL.iter().filter(with).filter_map(|service| of(service.name(), service.env_override())).collect()
}

#[test]
fn every_service_has_its_container() {
    assert_eq!(faults(&crate::workspace_root()), Vec::<String>::new());
    assert_eq!(faults(Path::new("/nowhere")).len(), ALL.len() - WITHOUT.len());
}

#[test]
fn an_image_is_pinned_and_the_variable_is_named() {
    let text = |image: &str| format!("#   export X_URL=a://b\nservices:\n  x:\n    image: {image}\n");
    for (image, pinned) in [
        ("a/b:1.2.3", true),
        ("a/b:v1.2.3", true),
        ("b:0.8.1-pg16", true),
        ("b", false),
        ("b:latest", false),
        ("b:7", false),
        ("b:7.4", false),
        ("127.0.0.1:5000/b", false),
        ("127.0.0.1:5000/b:1.2.3", true),
    ] {
        assert_eq!(fault(&text(image), "X_URL").is_none(), pinned, "{image}");
    }
    assert!(fault(&text("a/b:1.2.3"), "Y_URL").is_some() && fault("", "X_URL").is_some());
}
