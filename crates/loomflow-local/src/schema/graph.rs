//! What a schema makes a validator do: which subschema is applied where, and how often.
//!
//! A few hundred bytes of schema can keep a validator busy for ever: by a reference that leads back to itself without
//! taking anything off the value, or by references that double at every level. Both are found here, the first when the
//! schema is made, the second for each value, by counting the visits instead of making them.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use loomflow_core::{Error, Result};
use serde_json::Value;

const MAX_PATTERN: usize = 256;
/// The most subschemas a validator may have to look at for one value.
const MAX_VISITS: u64 = 1_000_000;
/// The deepest value that is looked at.
const MAX_VALUE_DEPTH: usize = 128;

/// The subschemas that can be reached, numbered so that whatever is applied to the same value comes later.
#[derive(Debug)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    root: usize,
}

#[derive(Debug, Default)]
struct Node {
    /// Applied to the same value.
    same: Vec<usize>,
    /// Applied to the member of that name.
    members: Vec<(String, usize)>,
    /// Applied to members whatever their name (an upper bound for patterns and the rest).
    any_member: Vec<usize>,
    /// Applied to items.
    items: Vec<usize>,
}

impl Graph {
    pub(super) fn new(schema: &Value) -> Result<Self> {
        let mut reader = Reader { document: schema, known: HashMap::new(), nodes: Vec::new() };
        let root = reader.schema(schema)?;
        reader.ordered(root)
    }

    /// Whether a validator is done with `value` after a bounded number of steps.
    pub(super) fn affords(&self, value: &Value) -> bool {
        let mut left = MAX_VISITS;
        self.visit(value, BTreeMap::from([(self.root, 1)]), &mut left, MAX_VALUE_DEPTH).is_some()
    }

    /// Counts how often each subschema is applied to `value` and, from there, to what it holds.
    fn visit(
        &self,
        value: &Value,
        mut todo: BTreeMap<usize, u64>,
        left: &mut u64,
        depth: usize,
    ) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        let mut applied = Vec::with_capacity(todo.len());
        while let Some((node, times)) = todo.pop_first() {
            *left = left.checked_sub(times)?;
            applied.push((&self.nodes[node], times));
            add(&mut todo, &self.nodes[node].same, times);
        }
        match value {
            Value::Object(members) => members.iter().try_for_each(|(name, member)| {
                let mut below = BTreeMap::new();
                for (node, times) in &applied {
                    add(&mut below, &node.any_member, *times);
                    let named = node.members.iter().filter(|(known, _)| known == name).map(|(_, to)| *to);
                    named.for_each(|to| add(&mut below, &[to], *times));
                }
                self.visit(member, below, left, depth)
            }),
            Value::Array(items) => {
                let mut below = BTreeMap::new();
                applied.iter().for_each(|(node, times)| add(&mut below, &node.items, *times));
                items.iter().try_for_each(|item| self.visit(item, below.clone(), left, depth))
            }
            _ => Some(()),
        }
    }
}

fn add(to: &mut BTreeMap<usize, u64>, nodes: &[usize], times: u64) {
    for node in nodes {
        let sum = to.entry(*node).or_insert(0);
        *sum = sum.saturating_add(times);
    }
}

struct Reader<'s> {
    document: &'s Value,
    known: HashMap<*const Value, usize>,
    nodes: Vec<Node>,
}

impl<'s> Reader<'s> {
    /// Reads a subschema and everything below it, once, and returns its number.
    fn schema(&mut self, schema: &'s Value) -> Result<usize> {
        if let Some(known) = self.known.get(&std::ptr::from_ref(schema)) {
            return Ok(*known);
        }
        let at = self.nodes.len();
        self.known.insert(std::ptr::from_ref(schema), at);
        self.nodes.push(Node::default());
        let Value::Object(keywords) = schema else { return Ok(at) };
        for (keyword, value) in keywords {
            self.keyword(at, keyword, value)?;
        }
        Ok(at)
    }

    fn keyword(&mut self, at: usize, keyword: &str, value: &'s Value) -> Result<()> {
        match keyword {
            "$ref" => {
                let target = self.resolve(value)?;
                let target = self.schema(target)?;
                self.nodes[at].same.push(target);
            }
            "$dynamicRef" | "$recursiveRef" | "$dynamicAnchor" | "$recursiveAnchor" | "$anchor" => {
                return Err(refused(format!("{keyword} is not supported; use \"$ref\": \"#/$defs/...\"")));
            }
            "$id" | "id" if at != 0 && value.is_string() => {
                return Err(refused(format!("{keyword} is supported at the top only")));
            }
            "not" | "if" | "then" | "else" | "allOf" | "anyOf" | "oneOf" => {
                let below = self.one_or_many(value)?;
                self.nodes[at].same.extend(below);
            }
            "dependentSchemas" | "dependencies" => {
                let below = self.named(value)?;
                self.nodes[at].same.extend(below.into_iter().map(|(_, node)| node));
            }
            "properties" => {
                let below = self.named(value)?;
                self.nodes[at].members.extend(below);
            }
            "patternProperties" => {
                for (pattern, _) in value.as_object().into_iter().flatten() {
                    short(pattern)?;
                }
                let below = self.named(value)?;
                self.nodes[at].any_member.extend(below.into_iter().map(|(_, node)| node));
            }
            "additionalProperties" | "unevaluatedProperties" | "propertyNames" => {
                let below = self.one_or_many(value)?;
                self.nodes[at].any_member.extend(below);
            }
            "items" | "prefixItems" | "additionalItems" | "contains" | "unevaluatedItems" => {
                let below = self.one_or_many(value)?;
                self.nodes[at].items.extend(below);
            }
            // Nothing is applied from here, but a definition that nobody uses is compiled all the same.
            "$defs" | "definitions" => drop(self.named(value)?),
            "pattern" => value.as_str().map_or(Ok(()), short)?,
            _ => {}
        }
        Ok(())
    }

    fn one_or_many(&mut self, value: &'s Value) -> Result<Vec<usize>> {
        match value {
            Value::Array(all) => all.iter().map(|one| self.schema(one)).collect(),
            one => Ok(vec![self.schema(one)?]),
        }
    }

    fn named(&mut self, value: &'s Value) -> Result<Vec<(String, usize)>> {
        let all = value.as_object().into_iter().flatten();
        all.map(|(name, schema)| Ok((name.clone(), self.schema(schema)?))).collect()
    }

    fn resolve(&self, reference: &Value) -> Result<&'s Value> {
        let text = reference.as_str().unwrap_or_default();
        let Some(pointer) = text.strip_prefix('#') else {
            return Err(refused(format!(
                "$ref {reference} leads out of the schema; only \"#/...\" is followed"
            )));
        };
        // A percent sign would need decoding, and two readers could decode it differently.
        let target = if pointer.contains('%') { None } else { self.document.pointer(pointer) };
        target.ok_or_else(|| refused(format!("$ref {reference} leads nowhere in the schema")))
    }

    /// Numbers the subschemas so that whatever is applied to the same value comes later, or finds the circle.
    fn ordered(self, root: usize) -> Result<Graph> {
        let mut places = vec![Place::New; self.nodes.len()];
        let mut done = Vec::with_capacity(self.nodes.len());
        for start in 0..self.nodes.len() {
            let mut path = vec![(start, 0)];
            while let Some((node, next)) = path.pop() {
                match (places[node], next) {
                    (Place::Done, _) => continue,
                    (Place::Open, 0) => {
                        return Err(refused(
                            "a $ref leads back to itself without going into the value".into(),
                        ));
                    }
                    _ => places[node] = Place::Open,
                }
                match self.nodes[node].same.get(next) {
                    Some(below) => path.extend([(node, next + 1), (*below, 0)]),
                    None => {
                        places[node] = Place::Done;
                        done.push(node);
                    }
                }
            }
        }
        let mut number = vec![0; done.len()];
        for (at, node) in done.iter().rev().enumerate() {
            number[*node] = at;
        }
        let mut nodes: Vec<Node> = (0..done.len()).map(|_| Node::default()).collect();
        for (old, mut node) in self.nodes.into_iter().enumerate() {
            let all = node.same.iter_mut().chain(&mut node.any_member).chain(&mut node.items);
            all.chain(node.members.iter_mut().map(|(_, to)| to)).for_each(|to| *to = number[*to]);
            nodes[number[old]] = node;
        }
        Ok(Graph { nodes, root: number[root] })
    }
}

#[derive(Clone, Copy)]
enum Place {
    New,
    Open,
    Done,
}

fn short(pattern: &str) -> Result<()> {
    if pattern.len() <= MAX_PATTERN {
        return Ok(());
    }
    Err(refused(format!("a pattern is {} bytes long; at most {MAX_PATTERN} are allowed", pattern.len())))
}

pub(super) fn refused(why: String) -> Error {
    Error::invalid_input(format!("the output schema cannot be used: {why}"))
}
