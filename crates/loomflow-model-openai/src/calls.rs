//! Tool calls put together from their pieces, whatever a server leaves out, repeats or makes up.

use std::sync::Arc;

use loomflow_core::{Delta, Result, ToolCall, ToolSpec, wire_name};
use loomflow_support_model::{MAX_ARGUMENT_BYTES, MAX_TOOL_SLOTS, broke_protocol};

use crate::wire::CallPiece;

/// The most bytes of all calls' arguments together.
const MAX_ALL_ARGUMENT_BYTES: usize = 8 << 20;
/// The most bytes of a call's name and of its id.
const MAX_NAME_BYTES: usize = 256;
const MAX_ID_BYTES: usize = 1_024;

/// The calls of one reply, in the order in which they first appeared.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Wire names and what they stand for.
    tools: Vec<(Arc<str>, Arc<str>)>,
    slots: Vec<Slot>,
    /// The slot that took the last piece.
    last: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Slot {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
    object: Object,
}

impl Calls {
    pub(crate) fn new(tools: &[Arc<ToolSpec>]) -> Self {
        let tools = tools.iter().map(|spec| (Arc::from(wire_name(&spec.name)), spec.name.clone())).collect();
        Self { tools, slots: Vec::new(), last: 0, bytes: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes a piece of a call; its share of the arguments goes out at once.
    pub(crate) fn take(&mut self, piece: CallPiece, out: &mut Vec<Delta>) -> Result<()> {
        let function = piece.function.unwrap_or_default();
        let (name, arguments) = (&function.name.0, function.arguments());
        let at = match self.find(piece.index.0, &piece.id.0, name, &arguments) {
            Some(at) => at,
            None => self.open(piece.index.0)?,
        };
        self.last = at;
        self.identify(at, piece.id.0, name)?;
        let slot = &mut self.slots[at];
        self.bytes += arguments.len();
        if slot.arguments.len() + arguments.len() > MAX_ARGUMENT_BYTES || self.bytes > MAX_ALL_ARGUMENT_BYTES
        {
            return Err(broke_protocol(format!(
                "the arguments of a tool call are larger than {MAX_ARGUMENT_BYTES} bytes, or those of all calls than \
                 {MAX_ALL_ARGUMENT_BYTES}"
            )));
        }
        slot.object.read(&arguments);
        slot.arguments.push_str(&arguments);
        if !arguments.is_empty() {
            out.push(Delta::Arguments(arguments.into()));
        }
        Ok(())
    }

    /// Forgets the calls whose arguments are not one whole object, of a reply that was cut off. Acting on half of them, or on
    /// none, would be another call than the one the model was making.
    pub(crate) fn keep_whole(&mut self) {
        let is_whole = |slot: &Slot| {
            let text = slot.arguments.trim_start();
            text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
        };
        self.slots.retain(is_whole);
    }

    /// The whole calls, each under an id of its own, whatever the server sent.
    pub(crate) fn finish(&mut self, out: &mut Vec<Delta>) {
        let slots = std::mem::take(&mut self.slots);
        let mut ids: Vec<Arc<str>> = Vec::with_capacity(slots.len());
        for slot in slots {
            let name = self.tools.iter().find(|(wire, _)| **wire == *slot.name);
            let name = name.map_or_else(|| Arc::from(slot.name), |(_, name)| name.clone());
            let id = unique(slot.id, &ids);
            ids.push(id.clone());
            out.push(Delta::ToolCall(ToolCall::new(id, name, slot.arguments)));
        }
    }

    /// The slot that a piece belongs to; `None` when it begins a call.
    fn find(&self, index: Option<u64>, id: &str, name: &str, arguments: &str) -> Option<usize> {
        let last_where = |fits: &dyn Fn(&Slot) -> bool| self.slots.iter().rposition(fits);
        let of_id = |slot: &Slot| !id.is_empty() && slot.id == id && (index.is_none() || slot.index == index);
        let of_index = |slot: &Slot| index.is_some() && slot.index == index;
        let at = last_where(&of_id).or_else(|| last_where(&of_index)).or_else(|| {
            // A piece without any mark continues what is open; an id or index that nobody has begins a call.
            let unmarked = id.is_empty() && index.is_none() && !self.slots.is_empty();
            unmarked.then_some(self.last)
        })?;
        let slot = &self.slots[at];
        // A used index under another id is another call.
        let of_another = !id.is_empty() && !slot.id.is_empty() && slot.id != id;
        if of_another || slot.is_followed_by(name, arguments) { None } else { Some(at) }
    }

    fn open(&mut self, index: Option<u64>) -> Result<usize> {
        if self.slots.len() >= MAX_TOOL_SLOTS {
            return Err(broke_protocol(format!("the reply asks for more than {MAX_TOOL_SLOTS} tool calls")));
        }
        self.slots.push(Slot { index, ..Slot::default() });
        Ok(self.slots.len() - 1)
    }

    /// Notes the id and the name. A name may come in pieces, or whole with every piece.
    fn identify(&mut self, at: usize, id: String, piece: &str) -> Result<()> {
        let slot = &mut self.slots[at];
        if slot.id.is_empty() {
            slot.id = id;
        }
        let longer = || format!("{}{piece}", slot.name);
        let is_known = |name: &str| self.tools.iter().any(|(wire, _)| wire.starts_with(name));
        let repeated = slot.name == piece && !is_known(&longer());
        let complete = !slot.arguments.is_empty();
        if !piece.is_empty() && !repeated && !complete {
            slot.name.push_str(piece);
        }
        if slot.name.len() > MAX_NAME_BYTES || slot.id.len() > MAX_ID_BYTES {
            return Err(broke_protocol("the name or the id of a tool call is too long"));
        }
        Ok(())
    }
}

fn unique(id: String, taken: &[Arc<str>]) -> Arc<str> {
    if !id.is_empty() && !taken.iter().any(|other| **other == *id) {
        return id.into();
    }
    // Of so many numbers and one more, one is free.
    let mut numbered = (taken.len()..=2 * taken.len()).map(|number| format!("{id}#{number}"));
    let free = numbered.find(|name| !taken.iter().any(|other| **other == **name));
    free.unwrap_or_default().into()
}

impl Slot {
    /// Whether a piece that seems to be this call's begins another, of a server that marks its calls badly: it brings another
    /// name after this call's arguments have begun, or the same name and arguments after they were complete.
    fn is_followed_by(&self, name: &str, arguments: &str) -> bool {
        if name.is_empty() || self.arguments.is_empty() {
            return false;
        }
        name != self.name || (self.object.is_complete() && !arguments.trim().is_empty())
    }
}

/// Follows one JSON object byte by byte, to know when it is complete.
#[derive(Debug, Default)]
struct Object {
    depth: usize,
    in_string: bool,
    escaped: bool,
    closed: bool,
}

impl Object {
    fn read(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.closed |= self.depth == 0;
                }
                _ => {}
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.closed && self.depth == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loomflow_core::Effect;
    use serde_json::{Value, json};

    fn specs() -> Vec<Arc<ToolSpec>> {
        ["get", "getget", "billing.refund", "search"]
            .map(|name| Arc::new(ToolSpec::new(name, "", Effect::Read, json!({"type": "object"})).unwrap()))
            .to_vec()
    }

    fn try_fold(pieces: &[Value]) -> Result<(Vec<ToolCall>, String)> {
        let (mut calls, mut out) = (Calls::new(&specs()), Vec::new());
        for piece in pieces {
            calls.take(serde_json::from_value(piece.clone()).unwrap(), &mut out)?;
        }
        calls.finish(&mut out);
        let (mut whole, mut streamed) = (Vec::new(), String::new());
        for delta in out {
            match delta {
                Delta::ToolCall(call) => whole.push(call),
                Delta::Arguments(piece) => streamed.push_str(&piece),
                other => panic!("{other:?}"),
            }
        }
        Ok((whole, streamed))
    }

    /// Each call as `id name arguments`.
    fn fold(pieces: &[Value]) -> Vec<String> {
        let (calls, _) = try_fold(pieces).unwrap();
        calls.iter().map(|call| format!("{} {} {}", call.id, call.name, call.arguments)).collect()
    }

    fn piece(index: Option<u64>, id: &str, name: &str, arguments: &str) -> Value {
        json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    }

    #[test]
    fn parallel_calls_are_told_apart_by_index() {
        let pieces = [
            piece(Some(0), "a", "get", ""),
            piece(Some(1), "b", "search", ""),
            piece(Some(0), "", "", "{\"x\":"),
            piece(Some(1), "", "", "{\"y\":2}"),
            piece(Some(0), "", "", "1}"),
        ];
        assert_eq!(fold(&pieces), ["a get {\"x\":1}", "b search {\"y\":2}"]);
        assert_eq!(try_fold(&pieces).unwrap().1, "{\"x\":{\"y\":2}1}", "arguments go out as they come");
    }

    #[test]
    fn a_new_id_on_a_used_index_is_a_new_call() {
        let pieces = [
            piece(Some(0), "a", "get", "{\"a\":1}"),
            piece(Some(0), "b", "search", "{\"b\""),
            piece(Some(0), "", "", ":2}"),
            piece(Some(0), "a", "", " "),
        ];
        assert_eq!(fold(&pieces), ["a get {\"a\":1} ", "b search {\"b\":2}"]);
    }

    #[test]
    fn a_new_id_counts_even_where_nothing_else_is_new() {
        let pieces = [piece(Some(0), "a", "get", ""), piece(Some(0), "b", "get", "{}")];
        assert_eq!(fold(&pieces), ["a get ", "b get {}"]);
    }

    #[test]
    fn a_missing_index_goes_by_id_and_then_to_the_last_call() {
        let pieces = [
            piece(None, "a", "get", "{"),
            piece(None, "b", "search", "{"),
            piece(None, "", "", "}"),
            piece(None, "a", "", "}"),
            piece(None, "", "", " "),
        ];
        assert_eq!(fold(&pieces), ["a get {} ", "b search {}"]);
        assert_eq!(fold(&[piece(None, "", "", "{}")]), ["#0  {}"], "nothing was open");
        let null_index = json!({"index": null, "id": null, "function": {"name": "get", "arguments": null}});
        assert_eq!(fold(&[null_index]), ["#0 get "]);
    }

    #[test]
    fn calls_without_any_mark_are_not_merged() {
        let pieces = [
            piece(None, "", "get", "{\"a\":1}"),
            piece(None, "", "search", "{\"b\":2}"),
            piece(None, "", "search", "{\"b\":3}"),
        ];
        assert_eq!(fold(&pieces), ["#0 get {\"a\":1}", "#1 search {\"b\":2}", "#2 search {\"b\":3}"]);
        let same_index: Vec<Value> = pieces
            .iter()
            .cloned()
            .map(|mut p| {
                p["index"] = json!(0);
                p
            })
            .collect();
        assert_eq!(fold(&same_index), fold(&pieces));
        let same_mark: Vec<Value> = same_index
            .iter()
            .cloned()
            .map(|mut p| {
                p["id"] = json!("c");
                p
            })
            .collect();
        assert_eq!(fold(&same_mark), ["c get {\"a\":1}", "c#1 search {\"b\":2}", "c#2 search {\"b\":3}"]);
        let same_id = [piece(Some(0), "c", "get", "{}"), piece(Some(1), "c", "get", "{}")];
        assert_eq!(fold(&same_id), ["c get {}", "c#1 get {}"]);
        let cut = [piece(None, "", "get", "{\"a\":"), piece(None, "", "search", "{}")];
        assert_eq!(
            fold(&cut),
            ["#0 get {\"a\":", "#1 search {}"],
            "never one call's arguments under another's name"
        );
        let repeating = [
            piece(Some(0), "", "search", "{\"q\":\"}"),
            piece(Some(0), "", "search", "\\\"x\"}"),
            piece(Some(0), "", "search", ""),
        ];
        assert_eq!(fold(&repeating), ["#0 search {\"q\":\"}\\\"x\"}"], "a name with every piece");
    }

    #[test]
    fn ids_are_made_unique() {
        let ids = |ids: &[&str]| -> Vec<String> {
            let pieces: Vec<Value> =
                ids.iter().enumerate().map(|(i, id)| piece(Some(i as u64), id, "get", "{}")).collect();
            try_fold(&pieces).unwrap().0.iter().map(|call| call.id.to_string()).collect()
        };
        assert_eq!(ids(&["", "a", "a", "a#2", "#4", ""]), ["#0", "a", "a#2", "a#2#3", "#4", "#5"]);
        assert_eq!(ids(&["#1", ""]), ["#1", "#2"]);
    }

    #[test]
    fn names_come_in_pieces_or_again() {
        let two = |a: &str, b: &str| fold(&[piece(Some(0), "c", a, ""), piece(Some(0), "c", b, "{}")]);
        assert_eq!(two("sea", "rch"), ["c search {}"]);
        assert_eq!(two("search", "search"), ["c search {}"]);
        assert_eq!(two("get", "get"), ["c getget {}"], "where that is a tool");
        assert_eq!(two("billing__", "refund"), ["c billing.refund {}"], "and back to its own name");
        assert_eq!(two("unknown", ""), ["c unknown {}"]);
        let late = [piece(Some(0), "c", "get", "{"), piece(Some(0), "c", "get", "}")];
        assert_eq!(fold(&late), ["c get {}"]);
    }

    #[test]
    fn arguments_may_be_an_object() {
        let whole = json!({"id": "a", "function": {"name": "get", "arguments": {"a": [1, "é"]}}});
        assert_eq!(fold(&[whole]), ["a get {\"a\":[1,\"é\"]}"]);
    }

    #[test]
    fn huge_indexes_cost_nothing_and_slots_and_arguments_are_bounded() {
        assert_eq!(fold(&[piece(Some(40_000_000), "a", "get", "{}")]), ["a get {}"]);
        let far = json!({"index": 1e300, "function": {"name": "get", "arguments": "{}"}});
        assert_eq!(fold(&[far]), ["#0 get {}"]);
        let many: Vec<Value> = (0..129).map(|i| piece(Some(i), "", "get", "{}")).collect();
        assert_eq!(try_fold(&many[..128]).unwrap().0.len(), 128);
        assert!(try_fold(&many).unwrap_err().message().contains("more than 128 tool calls"));
        let large = "x".repeat(MAX_ARGUMENT_BYTES);
        assert!(try_fold(&[piece(Some(0), "", "get", &large)]).is_ok());
        let more = [piece(Some(0), "", "get", &large), piece(Some(0), "", "", "x")];
        assert!(try_fold(&more).unwrap_err().message().contains("larger than 1048576 bytes"));
        let all: Vec<Value> = (0..9).map(|i| piece(Some(i), "", "get", &large)).collect();
        assert!(try_fold(&all).is_err());
        assert!(try_fold(&[piece(Some(0), "", &"n".repeat(300), "")]).is_err());
        assert!(try_fold(&[piece(Some(0), &"i".repeat(2_000), "", "")]).is_err());
    }
}
