//! Rules about functions, structs and literals.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Source;

const MAX_FUNCTION_LINES: usize = 60;
const MAX_FIELDS: usize = 12;

/// Structs that may be wide: what was typed, what is on the wire, tables of metrics.
const WIDE: &[&str] = &["Args", "Metrics", "Request", "Response", "Parameters", "Info", "Chunk"];

/// Answer sheets: every field is said, none is inherited.
const ANSWER_SHEETS: &[&str] = &["Choices", "Config"];

pub(super) fn check(source: &Source) -> Vec<String> {
    let mut rules = Rules { source, found: Vec::new() };
    rules.visit_file(&source.syntax);
    rules.found
}

struct Rules<'a> {
    source: &'a Source,
    found: Vec<String>,
}

impl Rules<'_> {
    fn report(&mut self, at: impl Spanned, text: &str) {
        let line = at.span().start().line;
        self.found.push(format!("{}:{line}: {text}", self.source.path));
    }

    fn check_function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let lines = block.span().end().line - signature.span().start().line + 1;
        if lines > MAX_FUNCTION_LINES {
            let text = format!(
                "`{}` has {lines} lines, {MAX_FUNCTION_LINES} are the limit: split it",
                signature.ident
            );
            self.report(signature, &text);
        }
    }
}

impl<'ast> Visit<'ast> for Rules<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check_function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.check_function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        let name = item.ident.to_string();
        let wide = WIDE.iter().any(|suffix| name.ends_with(suffix));
        if item.fields.len() > MAX_FIELDS && !wide {
            let text = format!(
                "`{name}` has {} fields, {MAX_FIELDS} are the limit: group them",
                item.fields.len()
            );
            self.report(item, &text);
        }
        visit::visit_item_struct(self, item);
    }

    fn visit_expr_struct(&mut self, literal: &'ast syn::ExprStruct) {
        let name =
            literal.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        if literal.rest.is_some() && ANSWER_SHEETS.contains(&name.as_str()) {
            self.report(literal, &format!("`{name} {{ .. }}` hides answers: say every field"));
        }
        visit::visit_expr_struct(self, literal);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("error")
            && let Ok(message) = attribute.parse_args_with(first_string)
            && !well_formed(&message)
        {
            let text =
                "an error message is lower-case, without a full stop, and fits \"failed to {message}\"";
            self.report(attribute, text);
        }
        visit::visit_attribute(self, attribute);
    }
}

fn first_string(input: syn::parse::ParseStream<'_>) -> syn::Result<String> {
    let text: syn::LitStr = input.parse()?;
    let _rest: proc_macro2::TokenStream = input.parse()?;
    Ok(text.value())
}

fn well_formed(message: &str) -> bool {
    let lower = message.chars().next().is_some_and(|first| !first.is_uppercase());
    lower && !message.ends_with('.')
}
