//! The function under `#[tool]`: taken apart and checked.

use proc_macro2::Ident;
use syn::ext::IdentExt as _;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, ExprLit, FnArg, ItemFn, Lifetime, Lit, Meta, Pat, PatType, Safety, Type, TypeImplTrait,
    TypeReference,
};

use crate::problems::Problems;

/// The type of the parameter that is not an argument.
const CONTEXT: &str = "RunContext";

/// One argument of the tool.
pub(crate) struct Argument {
    pub(crate) name: String,
    pub(crate) docs: String,
    pub(crate) ty: Type,
}

/// What the macro needs to know about a function.
pub(crate) struct Function {
    /// The function, without the documentation of its own and of its parameters.
    pub(crate) item: ItemFn,
    pub(crate) doc_attributes: Vec<Attribute>,
    pub(crate) description: String,
    pub(crate) takes_context: bool,
    pub(crate) arguments: Vec<Argument>,
}

impl Function {
    /// The tool's name unless the attribute has one.
    pub(crate) fn name(&self) -> String {
        self.item.sig.ident.unraw().to_string()
    }

    /// Takes a function apart. What is wrong goes to `problems`.
    pub(crate) fn read(mut item: ItemFn, problems: &mut Problems) -> Self {
        let (doc_attributes, others): (Vec<_>, Vec<_>) = item.attrs.drain(..).partition(is_doc);
        item.attrs = others;
        let description = docs(&doc_attributes);
        if description.is_empty() && !doc_attributes.iter().any(is_computed) {
            let message =
                "a tool needs a documentation comment: it is what the model is told the tool is for";
            problems.with(&item.sig.ident, message);
        }
        check_signature(&item, problems);
        let tool = item.sig.ident.unraw();
        let mut takes_context = false;
        let mut arguments = Vec::new();
        for (i, input) in item.sig.inputs.iter_mut().enumerate() {
            match input {
                FnArg::Receiver(receiver) => problems.with(
                    &*receiver,
                    "a tool is a free function: it has no `self`. What it needs lies behind its arguments or the context",
                ),
                FnArg::Typed(input) if is_context(&input.ty) => {
                    if i > 0 {
                        problems.with(&input.ty, "`&RunContext` is the first parameter");
                    }
                    takes_context = true;
                    attributes(input, problems);
                }
                FnArg::Typed(input) => arguments.extend(argument(input, &tool, problems)),
            }
        }
        Self { item, doc_attributes, description, takes_context, arguments }
    }
}

fn check_signature(item: &ItemFn, problems: &mut Problems) {
    let sig = &item.sig;
    if sig.asyncness.is_none() {
        problems.with(sig.fn_token, "a tool is an `async fn`: make it one, also if it never waits");
    }
    if let Some(constness) = &sig.constness {
        problems.with(constness, "a tool is a plain `async fn`, not a `const` one");
    }
    if let Safety::Unsafe(word) = &sig.safety {
        problems.with(word, "a model calls a tool with whatever it likes; it cannot be `unsafe`");
    }
    if let Some(abi) = &sig.abi {
        problems.with(abi, "a tool is a plain `async fn`, without an ABI");
    }
    if let Some(variadic) = &sig.variadic {
        problems.with(variadic, "a tool's parameters have names and types");
    }
    if !sig.generics.params.is_empty() {
        problems
            .with(&sig.generics.params, "a tool is not generic: the model is shown the schema of one type");
    } else if let Some(clause) = &sig.generics.where_clause {
        problems.with(clause, "a tool is not generic: it has no `where`");
    }
}

/// Reads one argument; `None` after a problem that leaves no name.
fn argument(input: &mut PatType, tool: &Ident, problems: &mut Problems) -> Option<Argument> {
    let docs = attributes(input, problems);
    owned(&input.ty, problems);
    let Pat::Ident(pattern) = &*input.pat else {
        problems
            .with(&input.pat, "an argument has a name, which the model is shown: take it apart in the body");
        return None;
    };
    if let Some(by_ref) = &pattern.by_ref {
        problems.with(by_ref, "an argument is taken by value: borrow it in the body");
    }
    if let Some((_, inner)) = &pattern.subpat {
        problems.with(inner, "an argument has a name, which the model is shown: take it apart in the body");
    }
    let ident = pattern.ident.unraw();
    if ident == *tool {
        let message = "an argument cannot have the tool's own name: give one of them another \
                       (the tool may keep its name for the model with `name = \"..\"`)";
        problems.with(&pattern.ident, message);
    }
    Some(Argument { name: ident.to_string(), docs, ty: (*input.ty).clone() })
}

/// Takes a parameter's attributes off: its documentation is returned, lints stay, anything else is refused.
fn attributes(input: &mut PatType, problems: &mut Problems) -> String {
    let (doc, others): (Vec<_>, Vec<_>) = input.attrs.drain(..).partition(is_doc);
    for attribute in &others {
        let lint = ["allow", "expect", "warn", "deny", "forbid"].iter().any(|l| attribute.path().is_ident(l));
        if !lint {
            problems.with(
                attribute,
                "a parameter of a tool takes documentation only; a limit or a name belongs to its type",
            );
        }
    }
    if let Some(computed) = doc.iter().find(|attribute| is_computed(attribute)) {
        problems.with(computed, "the documentation of a parameter is written out");
    }
    input.attrs = others;
    docs(&doc)
}

/// `&RunContext`, under any path.
fn is_context(ty: &Type) -> bool {
    let Type::Reference(TypeReference { mutability: None, elem, .. }) = ungrouped(ty) else { return false };
    matches!(ungrouped(elem), Type::Path(path) if path.path.segments.last().is_some_and(|s| s.ident == CONTEXT))
}

/// The type inside what a `macro_rules!` wraps around it.
fn ungrouped(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => ungrouped(&group.elem),
        Type::Paren(paren) => ungrouped(&paren.elem),
        other => other,
    }
}

/// Refuses what cannot be made out of JSON and passed on.
fn owned(ty: &Type, problems: &mut Problems) {
    if let Type::Path(path) = ungrouped(ty)
        && path.path.segments.last().is_some_and(|s| s.ident == CONTEXT)
    {
        problems.with(ty, "the context is taken by reference: `&RunContext`");
        return;
    }
    let mut borrows = Borrows { problems, done: false };
    borrows.visit_type(ty);
}

struct Borrows<'p> {
    problems: &'p mut Problems,
    done: bool,
}

impl Borrows<'_> {
    fn refuse(&mut self, what: impl quote::ToTokens, message: &str) {
        if !self.done {
            self.problems.with(what, message);
        }
        self.done = true;
    }
}

impl<'ast> Visit<'ast> for Borrows<'_> {
    fn visit_type_reference(&mut self, ty: &'ast TypeReference) {
        let message = if matches!(&*ty.elem, Type::Path(path) if path.path.segments.last().is_some_and(|s| s.ident == CONTEXT))
        {
            "the context is `&RunContext`, and the first parameter"
        } else {
            "an argument is owned: use `String` for `&str`, `Vec<_>` for a slice. The only reference a tool takes is `&RunContext`"
        };
        self.refuse(ty, message);
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast TypeImplTrait) {
        self.refuse(ty, "name the type of this argument: the model is shown its schema");
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if lifetime.ident != "static" {
            self.refuse(lifetime, "an argument is owned: it borrows from nothing");
        }
    }

    fn visit_type(&mut self, ty: &'ast Type) {
        match ty {
            Type::Infer(infer) => {
                self.refuse(infer, "name the type of this argument: the model is shown its schema")
            }
            other => visit::visit_type(self, other),
        }
    }
}

fn is_doc(attribute: &Attribute) -> bool {
    attribute.path().is_ident("doc")
}

/// `#[doc = include_str!(..)]`, which only the compiler can read.
pub(crate) fn is_computed(attribute: &Attribute) -> bool {
    matches!(&attribute.meta, Meta::NameValue(pair) if is_doc(attribute) && literal(&pair.value).is_none())
}

fn literal(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        Expr::Group(group) => literal(&group.expr),
        _ => None,
    }
}

/// The lines of documentation comments, joined and trimmed. The blank that follows `///` is not part of them.
fn docs(attributes: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attribute in attributes {
        let Meta::NameValue(pair) = &attribute.meta else { continue };
        let Some(text) = literal(&pair.value) else { continue };
        for line in text.lines() {
            lines.push(line.strip_prefix(' ').unwrap_or(line).trim_end().to_owned());
        }
        if text.is_empty() {
            lines.push(String::new());
        }
    }
    lines.join("\n").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proc_macro2::TokenStream;
    use quote::quote;

    use super::*;

    fn read(function: TokenStream) -> (Function, String) {
        let mut problems = Problems::default();
        let function = Function::read(syn::parse2(function).unwrap(), &mut problems);
        (function, problems.into_tokens().map(|tokens| tokens.to_string()).unwrap_or_default())
    }

    fn assert_refused(function: TokenStream, because: &str) {
        let text = function.to_string();
        let (_, complaint) = read(quote!(#[doc = " Does."] #function));
        assert!(complaint.contains(because), "{text}: {complaint:?}");
        assert_eq!(complaint.matches("compile_error").count(), 1, "{text}: {complaint}");
    }

    #[test]
    fn a_function_is_taken_apart() {
        let (function, complaint) = read(quote! {
            /// Gives back.
            ///
            ///   - indented
            #[inline]
            async fn refund(
                _ctx: &loomflow::RunContext,
                /// The order.
                /// Its number.
                mut order: OrderId,
                #[allow(unused)] r#type: Option<Cow<'static, str>>,
            ) -> String {}
        });
        assert_eq!(complaint, "");
        assert_eq!(function.name(), "refund");
        assert_eq!(function.description, "Gives back.\n\n  - indented");
        assert!(function.takes_context);
        let arguments: Vec<(&str, &str)> =
            function.arguments.iter().map(|a| (a.name.as_str(), a.docs.as_str())).collect();
        assert_eq!(arguments, [("order", "The order.\nIts number."), ("type", "")]);
        assert_eq!(function.item.attrs.len(), 1);
        assert_eq!(function.doc_attributes.len(), 3);
    }

    #[test]
    fn a_context_is_not_needed() {
        let (function, complaint) = read(quote! {
            /** Says
             the time. */
            async fn now() {}
        });
        assert_eq!(complaint, "");
        assert!(!function.takes_context && function.arguments.is_empty());
        assert_eq!(function.description, "Says\n            the time.");
    }

    #[test]
    fn documentation_is_needed() {
        for without in [
            quote!(
                async fn a() {}
            ),
            quote!(
                #[doc = "  "]
                async fn a() {}
            ),
            quote!(
                #[doc(hidden)]
                async fn a() {}
            ),
        ] {
            assert!(read(without).1.contains("documentation comment"));
        }
        assert_eq!(
            read(quote!(
                #[doc = include_str!("a.md")]
                async fn a() {}
            ))
            .1,
            ""
        );
    }

    #[test]
    fn what_cannot_be_a_tool_is_refused_once_and_in_words() {
        assert_refused(
            quote!(
                fn a() {}
            ),
            "`async fn`",
        );
        assert_refused(
            quote!(
                const async fn a() {}
            ),
            "`const`",
        );
        assert_refused(
            quote!(
                async unsafe fn a() {}
            ),
            "`unsafe`",
        );
        assert_refused(
            quote!(
                async extern "C" fn a() {}
            ),
            "ABI",
        );
        assert_refused(
            quote!(
                async fn a<T>(b: T) {}
            ),
            "not generic",
        );
        assert_refused(
            quote!(
                async fn a<'a>(b: Cow<'static, str>) {}
            ),
            "not generic",
        );
        assert_refused(
            quote!(
                async fn a()
                where
                    u8: Copy,
                {
                }
            ),
            "`where`",
        );
        assert_refused(
            quote!(
                async fn a(self) {}
            ),
            "no `self`",
        );
        assert_refused(
            quote!(
                async fn a(&self) {}
            ),
            "no `self`",
        );
        assert_refused(
            quote!(
                async fn a(b: u8, ctx: &RunContext) {}
            ),
            "first parameter",
        );
        assert_refused(
            quote!(
                async fn a(ctx: &mut RunContext) {}
            ),
            "`&RunContext`",
        );
        assert_refused(
            quote!(
                async fn a(ctx: RunContext) {}
            ),
            "by reference",
        );
        assert_refused(
            quote!(
                async fn a(b: &str) {}
            ),
            "owned",
        );
        assert_refused(
            quote!(
                async fn a(b: Option<&str>) {}
            ),
            "owned",
        );
        assert_refused(
            quote!(
                async fn a(b: Cow<'_, str>) {}
            ),
            "owned",
        );
        assert_refused(
            quote!(
                async fn a(b: impl Into<String>) {}
            ),
            "name the type",
        );
        assert_refused(
            quote!(
                async fn a(b: Vec<_>) {}
            ),
            "name the type",
        );
        assert_refused(
            quote!(
                async fn a((b, c): (u8, u8)) {}
            ),
            "take it apart",
        );
        assert_refused(
            quote!(
                async fn a(_: u8) {}
            ),
            "take it apart",
        );
        assert_refused(
            quote!(
                async fn a(ref b: u8) {}
            ),
            "by value",
        );
        assert_refused(
            quote!(
                async fn a(b @ 1: u8) {}
            ),
            "take it apart",
        );
        assert_refused(
            quote!(
                async fn a(a: u8) {}
            ),
            "own name",
        );
        assert_refused(
            quote!(
                async fn a(#[serde(default)] b: u8) {}
            ),
            "documentation only",
        );
        assert_refused(
            quote!(
                async fn a(#[doc = include_str!("b.md")] b: u8) {}
            ),
            "written out",
        );
    }
}
