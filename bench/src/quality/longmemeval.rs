//! LongMemEval's published files (`longmemeval_s.json` and the like): a list of questions, each with a haystack of its own.

use loomflow_core::Timestamp;
use serde::Deserialize;

use super::{Conversation, Haystack, Question};

#[derive(Debug, Deserialize)]
struct Item {
    question_id: String,
    question_type: String,
    question: String,
    haystack_session_ids: Vec<String>,
    haystack_dates: Vec<String>,
    haystack_sessions: Vec<Vec<Said>>,
    answer_session_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Said {
    role: String,
    content: String,
}

/// Reads a file's text. Questions that have no answer in their haystack (`…_abs`) are left out: nothing can be recalled.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn read(json: &str) -> Result<Vec<Haystack>, String> {
    let items: Vec<Item> =
        serde_json::from_str(json).map_err(|e| format!("not a file of LongMemEval: {e}"))?;
    items
        .into_iter()
        .filter(|item| !item.question_id.ends_with("_abs") && !item.answer_session_ids.is_empty())
        .map(haystack)
        .collect()
}

fn haystack(item: Item) -> Result<Haystack, String> {
    let n = item.haystack_sessions.len();
    if item.haystack_session_ids.len() != n || item.haystack_dates.len() != n {
        return Err(format!("question {}: as many ids and dates as sessions are needed", item.question_id));
    }
    let mut conversations = Vec::with_capacity(n);
    let parts = item.haystack_session_ids.iter().zip(&item.haystack_dates).zip(&item.haystack_sessions);
    for ((id, date), said) in parts {
        let at = moment(date).ok_or_else(|| format!("question {}: the date {date:?}", item.question_id))?;
        // A session may be there twice; it is one conversation.
        if conversations.iter().all(|c: &Conversation| c.id != *id) {
            conversations.push(Conversation { id: id.clone(), at, turns: turns(said) });
        }
    }
    conversations.sort_by_key(|c| c.at);
    if let Some(id) = item.answer_session_ids.iter().find(|id| !item.haystack_session_ids.contains(id)) {
        return Err(format!("question {}: its answer {id:?} is not in its haystack", item.question_id));
    }
    let question =
        Question { kind: item.question_type, text: item.question, evidence: item.answer_session_ids };
    Ok(Haystack { conversations, questions: vec![question] })
}

/// What the user said with the reply to it; a side that is missing is empty.
fn turns(said: &[Said]) -> Vec<(String, String)> {
    let mut turns: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for one in said {
        match turns.last_mut() {
            Some((_, reply)) if open && one.role == "assistant" => {
                reply.clone_from(&one.content);
                open = false;
            }
            _ if one.role == "assistant" => turns.push((String::new(), one.content.clone())),
            _ => {
                turns.push((one.content.clone(), String::new()));
                open = true;
            }
        }
    }
    turns
}

/// `2023/05/20 (Sat) 02:21`, in UTC.
fn moment(date: &str) -> Option<Timestamp> {
    let mut parts = date.split_ascii_whitespace();
    let mut day = parts.next()?.split('/');
    let midnight = Timestamp::from_date(
        day.next()?.parse().ok()?,
        day.next()?.parse().ok()?,
        day.next()?.parse().ok()?,
    )?;
    let (hours, minutes) = parts.last()?.split_once(':')?;
    let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    Some(Timestamp::from_micros(midnight.as_micros() + minutes * 60_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"[
        {"question_id": "q1", "question_type": "single-session-user", "question": "What did I study?", "answer": "Law",
         "question_date": "2023/05/30 (Tue) 23:40", "haystack_session_ids": ["b", "a"],
         "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/19 (Fri) 10:00"],
         "haystack_sessions": [[{"role": "user", "content": "I studied law", "has_answer": true}, {"role": "assistant", "content": "Good"}],
                               [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}]],
         "answer_session_ids": ["b"]},
        {"question_id": "q2_abs", "question_type": "multi-session", "question": "?", "answer": 3, "haystack_session_ids": [],
         "haystack_dates": [], "haystack_sessions": [], "answer_session_ids": []}
    ]"#;

    #[test]
    fn the_published_form_is_read() {
        let read = read(FILE).unwrap();
        assert_eq!(read.len(), 1, "what cannot be answered is not asked");
        let [a, b] = &read[0].conversations[..] else { panic!("two conversations") };
        assert_eq!((a.id.as_str(), b.id.as_str()), ("a", "b"), "oldest first");
        assert_eq!(a.turns, [("".into(), "Hello".into()), ("Hi".into(), "".into())]);
        assert_eq!(b.turns, [("I studied law".into(), "Good".into())]);
        assert_eq!(b.at.as_micros(), 1_684_549_260_000_000);
        assert_eq!(read[0].questions[0].evidence, ["b"]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (from, to) in [
            ("2023/05/20 (Sat) 02:21", "May"),
            (r#""answer_session_ids": ["b"]"#, r#""answer_session_ids": ["x"]"#),
            (r#"["b", "a"]"#, r#"["b"]"#),
            ("[", "{"),
        ] {
            assert!(read(&FILE.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
