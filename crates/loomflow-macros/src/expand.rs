//! What `#[tool]` writes.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{FnArg, ItemFn, Meta, Path, ReturnType, parse_quote};

use crate::function::{Function, is_computed};
use crate::problems::Problems;
use crate::settings::{Effect, Settings, check_name};

/// The whole macro: the tool, or compile errors and what keeps the rest of the file free of errors that only follow.
pub(crate) fn tool(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let mut problems = Problems::default();
    let settings = Settings::read(attribute, &mut problems);
    let function: ItemFn = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            // The compiler says better than we what is wrong with a function; only something else is ours to refuse.
            problems.at(error.span(), format!("`#[tool]` goes on an `async fn` with a body: {error}"));
            let errors = problems.into_tokens();
            return quote!(#errors #item);
        }
    };
    let function = Function::read(function, &mut problems);
    let name = settings.name.clone().unwrap_or_else(|| function.name());
    if settings.name.is_none()
        && let Err(why) = check_name(&name)
    {
        problems.with(&function.item.sig.ident, format!("{why}; give it one with `name = \"..\"`"));
    }
    let krate = settings.krate.clone().unwrap_or_else(|| parse_quote!(::loomflow));
    match (problems.into_tokens(), settings.effect) {
        (None, Some(effect)) => {
            let tool = unit_struct(&function, &krate);
            let implementation = implementation(&function, &settings, &name, effect, &krate);
            quote!(#tool #implementation)
        }
        (errors, _) => {
            let stand_in = stand_in(&function, &krate);
            quote!(#errors #stand_in)
        }
    }
}

/// The struct that goes by the function's name, and the function itself.
fn unit_struct(function: &Function, krate: &Path) -> TokenStream {
    let Function { item, doc_attributes, .. } = function;
    let ItemFn { attrs, vis, sig, block, .. } = item;
    let ident = &sig.ident;
    let mut direct = sig.clone();
    direct.ident = Ident::new("call_direct", ident.span());
    let documentation = format!(
        "The function itself, for tests of its own. It passes no door: no policy is asked and nothing is recorded. \
         An agent calls [`Tool::call`]({}::Tool::call) instead.",
        quote!(#krate).to_string().replace(' ', "").trim_start_matches("::")
    );
    quote! {
        #(#doc_attributes)*
        #[allow(non_camel_case_types, reason = "it goes by the name of its function")]
        #[derive(::core::clone::Clone, ::core::marker::Copy, ::core::fmt::Debug)]
        #vis struct #ident;

        impl #ident {
            #[doc = #documentation]
            #[allow(
                clippy::missing_errors_doc,
                clippy::missing_panics_doc,
                clippy::needless_pass_by_value,
                clippy::unused_async,
                reason = "a tool is async, owns its arguments, and documents itself for the model"
            )]
            #(#attrs)*
            #vis #direct #block
        }
    }
}

/// `impl Tool`. No local name in here can be a unit struct of the user's, whose names are in scope: hence the underscores.
fn implementation(
    function: &Function,
    settings: &Settings,
    name: &str,
    effect: Effect,
    krate: &Path,
) -> TokenStream {
    let here = Span::mixed_site();
    let ident = &function.item.sig.ident;
    let support = quote!(#krate::__tool);
    let description = description(function);
    let effect = Ident::new(
        match effect {
            Effect::Read => "Read",
            Effect::Write => "Write",
            Effect::Destructive => "Destructive",
            Effect::External => "External",
        },
        here,
    );
    let timeout = option(settings.timeout_ms.map(|ms| quote!(::core::time::Duration::from_millis(#ms))));
    let idempotent = option(settings.idempotent.map(|yes| quote!(#yes)));

    let types: Vec<_> = function.arguments.iter().map(|argument| &argument.ty).collect();
    let values: Vec<Ident> = (0..types.len()).map(|i| format_ident!("__argument_{i}", span = here)).collect();
    let reads = function.arguments.iter().zip(&values).map(|(argument, value)| {
        let (name, docs, ty) = (&argument.name, &argument.docs, &argument.ty);
        // Where the type does not do, the compiler points at it.
        quote_spanned! {at(ty.span())=> let #value = __pass.argument::<#ty>(#name, #docs); }
    });
    let context = context(function);
    let output = match &function.item.sig.output {
        ReturnType::Default => here,
        ReturnType::Type(_, ty) => at(ty.span()),
    };
    let told = quote_spanned! {output=> #support::answer(__answer) };
    let pinned = quote_spanned! {at(ident.span())=> ::std::boxed::Box::pin(__work) };
    quote_spanned! {here=>
        const _: () = {
            #[allow(unused_variables, reason = "a tool may take no arguments")]
            fn __arguments(__pass: &mut #support::Pass<'_, '_>) -> ::core::option::Option<(#(#types,)*)> {
                #(#reads)*
                ::core::option::Option::Some((#(#values?,)*))
            }

            static __DECLARED: ::std::sync::LazyLock<#support::Declared<(#(#types,)*)>> =
                ::std::sync::LazyLock::new(|| {
                    #support::Declaration {
                        name: #name,
                        description: #description,
                        effect: #support::Effect::#effect,
                        timeout: #timeout,
                        idempotent: #idempotent,
                        arguments: __arguments,
                    }
                    .declare()
                });

            impl #support::Tool for #ident {
                fn spec(&self) -> &#support::ToolSpec {
                    __DECLARED.spec()
                }

                fn call<'life0, 'life1, 'async_trait>(
                    &'life0 self,
                    __context: &'life1 #support::RunContext,
                    __call: #support::PermittedCall,
                ) -> #support::Called<'async_trait>
                where
                    'life0: 'async_trait,
                    'life1: 'async_trait,
                    Self: 'async_trait,
                {
                    let __work = async move {
                        let (#(#values,)*) = match __DECLARED.read(&__call) {
                            ::core::result::Result::Ok(__read) => __read,
                            ::core::result::Result::Err(__refusal) => return __refusal,
                        };
                        let __answer = #ident::call_direct(#context #(#values),*).await;
                        #told
                    };
                    #pinned
                }
            }
        };
    }
}

/// The first parameter, if it is the context. When it is another type of that name the compiler points at it.
fn context(function: &Function) -> Option<TokenStream> {
    let FnArg::Typed(first) = function.item.sig.inputs.first()? else { return None };
    function.takes_context.then(|| quote_spanned!(at(first.ty.span())=> __context,))
}

/// A place in the user's code, with names that are the macro's own.
fn at(place: Span) -> Span {
    Span::mixed_site().located_at(place)
}

fn option(value: Option<TokenStream>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

/// The description as a literal, or as a `concat!` of what only the compiler can read.
fn description(function: &Function) -> TokenStream {
    if !function.doc_attributes.iter().any(is_computed) {
        let text = &function.description;
        return quote!(#text);
    }
    let lines = function.doc_attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) => Some(&pair.value),
        _ => None,
    });
    quote!(::core::concat!(#(#lines, "\n"),*))
}

/// After an error: something that goes by the name and can be offered to an agent, so that only the error is reported.
fn stand_in(function: &Function, krate: &Path) -> TokenStream {
    let ident = &function.item.sig.ident;
    if function.item.sig.receiver().is_some() {
        // Inside an `impl` no struct can stand.
        let item = &function.item;
        return quote!(#item);
    }
    let tool = unit_struct(function, krate);
    let support = quote!(#krate::__tool);
    quote! {
        #tool
        const _: () = {
            impl #support::Tool for #ident {
                fn spec(&self) -> &#support::ToolSpec {
                    ::core::unreachable!("it did not compile")
                }
                fn call<'life0, 'life1, 'async_trait>(
                    &'life0 self,
                    _context: &'life1 #support::RunContext,
                    _call: #support::PermittedCall,
                ) -> #support::Called<'async_trait>
                where
                    'life0: 'async_trait,
                    'life1: 'async_trait,
                    Self: 'async_trait,
                {
                    ::core::unreachable!("it did not compile")
                }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(tokens: &TokenStream) -> usize {
        tokens.to_string().matches("compile_error").count()
    }

    #[test]
    fn what_it_writes_is_rust() {
        let written = tool(
            quote!(effect = external, timeout = "5s", idempotent, name = "orders.refund", crate = a::b),
            quote! {
                /// Gives back.
                pub(crate) async fn refund(ctx: &RunContext, order: OrderId, mut amount: Option<u64>) -> Result<String> {}
            },
        );
        assert_eq!(errors(&written), 0);
        let file: syn::File = syn::parse2(written).unwrap();
        assert_eq!(file.items.len(), 3);
    }

    #[test]
    fn after_an_error_the_name_is_still_there() {
        let written = tool(
            quote!(),
            quote!(
                #[doc = "Does."]
                async fn a() {}
            ),
        );
        assert_eq!(errors(&written), 1);
        assert!(written.to_string().contains("struct a ;"), "{written}");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let written = tool(
            quote!(efect = read),
            quote!(
                fn ä<T>(&self, b: &str, (c, d): (u8, u8)) {}
            ),
        );
        assert_eq!(errors(&written), 9, "{written}");
    }

    #[test]
    fn what_is_no_function_is_an_error_and_stays_as_it_is() {
        for item in [
            quote!(
                struct A;
            ),
            quote!(
                async fn a();
            ),
            quote!(fn),
            quote!(),
            quote!(impl A { fn b() {} }),
            quote!(1 + 1),
            quote!(
                const A: u8 = 1;
            ),
        ] {
            let written = tool(quote!(effect = read), item.clone());
            assert_eq!(errors(&written), 1, "{written}");
            assert!(written.to_string().ends_with(&item.to_string()));
        }
    }
}
