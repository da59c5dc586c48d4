//! What stands in the brackets of `#[tool(..)]`.

use proc_macro2::{Ident, Span, TokenStream};
use syn::ext::IdentExt as _;
use syn::parse::{ParseStream, Parser as _};
use syn::{Expr, ExprLit, Lit, LitStr, Path, Token};

use crate::problems::Problems;

const EFFECTS: &str = "`read`, `write`, `destructive` or `external`";

const NO_EFFECT: &str = "`#[tool]` needs an effect: `effect = read` (looks and changes nothing), `write` (can be changed back), \
     `destructive` (cannot be changed back) or `external` (reaches somebody outside). There is no default, because it decides \
     whether a call needs approval and whether it is repeated after a crash";

/// The longest name providers take.
const MAX_NAME: usize = 64;

/// A variant of `loomflow_core::Effect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Read,
    Write,
    Destructive,
    External,
}

/// The attribute, read.
#[derive(Default)]
pub(crate) struct Settings {
    /// Always there when there were no problems.
    pub(crate) effect: Option<Effect>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) idempotent: Option<bool>,
    pub(crate) name: Option<String>,
    pub(crate) krate: Option<Path>,
}

impl Settings {
    /// Reads the attribute. What is wrong goes to `problems`; what could be read is returned.
    pub(crate) fn read(attribute: TokenStream, problems: &mut Problems) -> Self {
        let mut settings = Self::default();
        let mut seen: Vec<String> = Vec::new();
        let entries = |input: ParseStream<'_>| {
            while !input.is_empty() {
                let key = input.call(Ident::parse_any)?;
                let name = key.unraw().to_string();
                let value = if input.peek(Token![=]) {
                    input.parse::<Token![=]>()?;
                    Some(input.parse::<Expr>()?)
                } else {
                    None
                };
                if seen.contains(&name) {
                    problems.with(&key, format!("`{name}` is given twice"));
                } else {
                    settings.set(&key, &name, value, problems);
                    seen.push(name);
                }
                if !input.is_empty() {
                    input.parse::<Token![,]>()?;
                }
            }
            Ok(())
        };
        if let Err(error) = entries.parse2(attribute) {
            problems.add(error);
        } else if !seen.iter().any(|name| name == "effect") {
            problems.at(Span::call_site(), NO_EFFECT);
        }
        settings
    }

    fn set(&mut self, key: &Ident, name: &str, value: Option<Expr>, problems: &mut Problems) {
        let result = match (name, value) {
            ("effect", Some(value)) => effect(&value).map(|effect| self.effect = Some(effect)),
            ("timeout", Some(value)) => text(&value, "\"5s\"")
                .and_then(|text| duration_ms(&text))
                .map(|timeout| self.timeout_ms = Some(timeout)),
            ("idempotent", None) => {
                self.idempotent = Some(true);
                Ok(())
            }
            ("idempotent", Some(value)) => yes_or_no(&value).map(|yes| self.idempotent = Some(yes)),
            ("name", Some(value)) => text(&value, "\"orders.refund\"").and_then(|text| {
                let name = text.value();
                check_name(&name).map_err(|why| syn::Error::new(text.span(), why))?;
                self.name = Some(name);
                Ok(())
            }),
            ("crate", Some(value)) => path(value).map(|path| self.krate = Some(path)),
            ("effect", None) => Err(syn::Error::new(key.span(), format!("say which: `effect = ` {EFFECTS}"))),
            ("timeout" | "name" | "crate", None) => {
                Err(syn::Error::new(key.span(), format!("`{name}` needs a value: `{name} = ..`")))
            }
            _ => Err(syn::Error::new(
                key.span(),
                format!(
                    "`#[tool]` knows no `{name}`; it knows `effect`, `timeout`, `idempotent`, `name` and `crate`"
                ),
            )),
        };
        if let Err(error) = result {
            problems.add(error);
        }
    }
}

fn effect(value: &Expr) -> syn::Result<Effect> {
    let word = match value {
        Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
        Expr::Lit(ExprLit { lit: Lit::Str(quoted), .. }) => {
            let bare = quoted.value();
            return Err(syn::Error::new_spanned(
                value,
                format!("an effect is a bare word: {EFFECTS}, not {bare:?}"),
            ));
        }
        _ => None,
    };
    match word.as_deref() {
        Some("read") => Ok(Effect::Read),
        Some("write") => Ok(Effect::Write),
        Some("destructive") => Ok(Effect::Destructive),
        Some("external") => Ok(Effect::External),
        Some(other) => {
            Err(syn::Error::new_spanned(value, format!("there is no effect `{other}`; use {EFFECTS}")))
        }
        None => Err(syn::Error::new_spanned(value, format!("an effect is one of {EFFECTS}"))),
    }
}

fn text(value: &Expr, example: &str) -> syn::Result<LitStr> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) if text.suffix().is_empty() => Ok(text.clone()),
        _ => Err(syn::Error::new_spanned(value, format!("this is a text in quotes, like {example}"))),
    }
}

fn yes_or_no(value: &Expr) -> syn::Result<bool> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Bool(yes), .. }) => Ok(yes.value),
        _ => Err(syn::Error::new_spanned(value, "`idempotent` stands alone, or is `true` or `false`")),
    }
}

fn path(value: Expr) -> syn::Result<Path> {
    match value {
        Expr::Path(path) if path.qself.is_none() && path.attrs.is_empty() => Ok(path.path),
        _ => Err(syn::Error::new_spanned(value, "`crate` is a path, like `crate = ::loomflow`")),
    }
}

fn duration_ms(text: &LitStr) -> syn::Result<u64> {
    let bad = |why: &str| {
        let message = format!("{:?} {why}; write it as \"500ms\", \"5s\" or \"2m\"", text.value());
        Err(syn::Error::new(text.span(), message))
    };
    let value = text.value();
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    let unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return bad("is not a duration"),
    };
    if number.is_empty() {
        return bad("is not a duration");
    }
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(0) => bad("leaves no time at all"),
        Some(ms) => Ok(ms),
        None => bad("is too long"),
    }
}

/// The rules of `ToolSpec::new`, and of the name's length on its way to a provider, who knows no dots.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(format!("{name:?} is not a tool's name: use 1 to {MAX_NAME} of A-Z a-z 0-9 _ . -"));
    }
    let on_wire = name.len() + name.bytes().filter(|b| *b == b'.').count();
    if on_wire > MAX_NAME {
        return Err(format!(
            "{name:?} is too long: a name has at most {MAX_NAME} characters, where a dot counts twice"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;

    fn read(attribute: TokenStream) -> (Settings, String) {
        let mut problems = Problems::default();
        let settings = Settings::read(attribute, &mut problems);
        (settings, problems.into_tokens().map(|tokens| tokens.to_string()).unwrap_or_default())
    }

    fn complaint(attribute: TokenStream) -> String {
        let (_, complaint) = read(attribute);
        assert!(!complaint.is_empty());
        complaint
    }

    #[test]
    fn all_settings_are_read() {
        let (settings, complaint) =
            read(quote!(effect = external, timeout = "2m", idempotent, name = "a.b", crate = ::x::y,));
        assert_eq!(complaint, "");
        assert_eq!(settings.effect, Some(Effect::External));
        assert_eq!(settings.timeout_ms, Some(120_000));
        assert_eq!(settings.idempotent, Some(true));
        assert_eq!(settings.name.as_deref(), Some("a.b"));
        let krate = settings.krate.unwrap();
        assert_eq!(quote!(#krate).to_string(), quote!(::x::y).to_string());
    }

    #[test]
    fn what_is_left_out_stays_open() {
        let (settings, complaint) = read(quote!(effect = read));
        assert_eq!(complaint, "");
        assert_eq!(settings.timeout_ms, None);
        assert_eq!(settings.idempotent, None);
        assert_eq!(read(quote!(effect = read, idempotent = false)).0.idempotent, Some(false));
    }

    #[test]
    fn an_effect_is_needed_and_is_one_of_four() {
        for missing in [quote!(), quote!(timeout = "5s")] {
            let complaint = complaint(missing);
            for effect in ["read", "write", "destructive", "external"] {
                assert!(complaint.contains(effect), "{complaint}");
            }
            assert!(complaint.contains("no default"), "{complaint}");
        }
        assert!(complaint(quote!(effect = reed)).contains("no effect `reed`"));
        assert!(complaint(quote!(effect = "read")).contains("bare word"));
        assert!(complaint(quote!(effect = Effect::Read)).contains("an effect is one of"));
        assert!(complaint(quote!(effect)).contains("say which"));
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, ms) in [("500ms", 500), ("5s", 5_000), ("2m", 120_000), ("1ms", 1)] {
            assert_eq!(read(quote!(effect = read, timeout = #text)).0.timeout_ms, Some(ms), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "+5s",
            "5h",
            "1.5s",
            "0s",
            "99999999999999999999s",
            "18446744073709551615m",
            "5µs",
        ] {
            complaint(quote!(effect = read, timeout = #bad));
        }
        assert!(complaint(quote!(effect = read, timeout = 5)).contains("in quotes"));
    }

    #[test]
    fn names_are_those_that_core_and_providers_take() {
        let longest = "a".repeat(64);
        for good in ["a", "A-1_b.c", &longest] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let dotted = format!("{}.b", "a".repeat(62));
        for bad in ["", "a b", "ä", "a/b", &format!("{longest}a"), &dotted] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        complaint(quote!(effect = read, name = "a b"));
        complaint(quote!(effect = read, name = a));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let complaint = complaint(quote!(efect = read, timeout = "5", timeout = "6s", name));
        for part in
            ["knows no `efect`", "not a duration", "given twice", "`name` needs a value", "needs an effect"]
        {
            assert!(complaint.contains(part), "{part}: {complaint}");
        }
    }

    #[test]
    fn what_is_no_list_of_settings_is_an_error_and_never_a_panic() {
        for bad in [
            quote!(effect(read)),
            quote!(effect = ),
            quote!(= read),
            quote!(effect read),
            quote!("effect"),
            quote!(,),
            quote!(effect = read timeout = "5s"),
            quote!(effect = read, crate = "loomflow"),
            quote!(effect = read, idempotent = maybe),
            quote!(effect = read, timeout),
        ] {
            complaint(bad);
        }
    }
}
