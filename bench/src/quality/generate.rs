//! Haystacks from a seed: users who say things about themselves among much else, and questions in other words.
//!
//! Each thing is said in one conversation, or in two when it changed or when it takes both to answer. Around it lie
//! conversations with the same words about other people, and small talk.

use loomflow_core::Timestamp;

use super::{Conversation, Haystack, Question};
use crate::draw::Draw;

const FIRST_DAY: i64 = 1_672_531_200;
const DAY: i64 = 86_400;

/// Something that can be said of oneself.
struct Trait {
    said: [&'static str; 3],
    asked: [&'static str; 3],
    /// The same words about somebody else.
    other: [&'static str; 2],
    values: [&'static str; 6],
}

const TRAITS: [Trait; 12] = [
    Trait {
        said: ["I work as a {}", "my job these days is {}", "they hired me as a {}"],
        asked: ["what do I do for work?", "which job do I have?", "as what am I working now?"],
        other: ["my neighbour quit her job in a hurry", "my cousin cannot find work as a {}"],
        values: ["carpenter", "nurse", "geologist", "translator", "baker", "surveyor"],
    },
    Trait {
        said: ["I live in {} now", "we moved to {} and live there", "my flat is in {}"],
        asked: ["in which city do I live?", "where is my flat?", "where did we move to?"],
        other: ["my brother dreams of living in {}", "flats in the city are expensive"],
        values: ["Lisbon", "Oslo", "Zagreb", "Kyoto", "Bogota", "Leipzig"],
    },
    Trait {
        said: ["my dog is called {}", "we adopted a dog and named him {}", "{} is the name of my dog"],
        asked: [
            "what is my dog called?",
            "what is the name of my dog?",
            "how did we name the dog we adopted?",
        ],
        other: ["a dog barked at {} all night", "dogs are not allowed in the office"],
        values: ["Rufus", "Pixel", "Bandit", "Waffle", "Comet", "Mango"],
    },
    Trait {
        said: ["I am allergic to {}", "{} gives me an allergic rash", "my allergy is to {}"],
        asked: ["what am I allergic to?", "which allergy do I have?", "what gives me a rash?"],
        other: ["is an allergy to {} common?", "the doctor spoke about allergies on the radio"],
        values: ["walnuts", "latex", "shellfish", "pollen", "penicillin", "sesame"],
    },
    Trait {
        said: ["I drive a {}", "I bought a {} as my car", "my car is a {}"],
        asked: ["which car do I drive?", "what car did I buy?", "what kind of car is mine?"],
        other: ["a {} blocked the car park", "cars are too loud in our street"],
        values: ["Volvo", "Fiat", "Tesla", "Skoda", "Subaru", "Mini"],
    },
    Trait {
        said: ["I prefer {} in the morning", "for breakfast I like {} best", "{} is my favourite breakfast"],
        asked: [
            "what do I like for breakfast?",
            "what do I prefer in the morning?",
            "my favourite breakfast is what?",
        ],
        other: ["does {} keep well until the morning?", "breakfast at the hotel is late"],
        values: ["porridge", "miso soup", "pancakes", "grapefruit", "waffles", "muesli"],
    },
    Trait {
        said: ["I am learning {}", "my {} lessons began", "I take a course in {}"],
        asked: ["what am I learning?", "which lessons do I take?", "which course did I begin?"],
        other: ["my niece gave up on {} lessons", "courses are full this year"],
        values: ["Finnish", "pottery", "fencing", "the cello", "sailing", "calligraphy"],
    },
    Trait {
        said: ["my sister {} is visiting", "I called my sister {}", "{} is my sister"],
        asked: ["what is my sister's name?", "who is my sister?", "which sister did I call?"],
        other: ["his sister wrote to {}", "sisters often argue"],
        values: ["Beatrix", "Noor", "Ingrid", "Salome", "Yuki", "Paloma"],
    },
    Trait {
        said: ["my dentist appointment is on {}", "I go to the dentist on {}", "the dentist sees me on {}"],
        asked: [
            "when is my dentist appointment?",
            "on which date do I go to the dentist?",
            "when does the dentist see me?",
        ],
        other: ["the office is closed on {}", "my dentist has a new assistant"],
        values: ["March 3", "April 19", "May 27", "June 8", "July 14", "August 22"],
    },
    Trait {
        said: ["we married on {}", "our wedding was on {}", "our wedding day is {}"],
        asked: ["when was our wedding?", "on which day did we marry?", "what is the date of our wedding?"],
        other: ["the match was on {}", "the wedding of my boss was boring"],
        values: ["September 1", "October 12", "November 30", "December 5", "January 17", "February 23"],
    },
    Trait {
        said: [
            "I keep my passport in the {}",
            "my passport lies in the {}",
            "the passport of mine is in the {}",
        ],
        asked: [
            "where is my passport?",
            "where do I keep my passport?",
            "in what place does my passport lie?",
        ],
        other: ["the {} needs cleaning", "her passport expired at the border"],
        values: ["piano stool", "freezer", "attic", "blue suitcase", "bread box", "cellar"],
    },
    Trait {
        said: ["I am reading {}", "the book on my bedside table is {}", "{} is the book I am reading"],
        asked: ["which book am I reading?", "what book lies on my bedside table?", "what am I reading?"],
        other: ["somebody left a copy of {} on the bus", "books pile up in the hall"],
        values: ["Middlemarch", "Dune", "Emma", "Ulysses", "Beloved", "Persuasion"],
    },
];

const SMALL_TALK: [&str; 8] = [
    "can you shorten this paragraph for me",
    "what is a good word for something that is nearly finished",
    "the weather was dreadful and the train was late",
    "please convert 12 inches to centimetres",
    "tell me a joke about a lamp",
    "how do I get wine out of a carpet",
    "write a polite refusal to an invitation",
    "how long do I boil an egg",
];

const REPLIES: [&str; 4] = [
    "Noted. Is there anything else?",
    "Thank you for telling me, that is good to know.",
    "I see. Let me know if I can help with it.",
    "Sure, here you go.",
];

/// Users with what they say, and six questions about each; the same for a seed, for ever.
#[must_use]
pub fn generate(seed: u64, users: usize) -> Vec<Haystack> {
    (0..users as u64).map(|user| haystack(&mut Draw::at(seed, [user, 5]))).collect()
}

fn pick<'a, T>(draw: &mut Draw, of: &'a [T]) -> &'a T {
    &of[draw.below(of.len() as u64) as usize]
}

/// A few different numbers below `bound`.
fn several(draw: &mut Draw, n: usize, bound: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..bound).collect();
    for i in 0..n {
        let other = i + draw.below((bound - i) as u64) as usize;
        all.swap(i, other);
    }
    all.truncate(n);
    all
}

fn haystack(draw: &mut Draw) -> Haystack {
    let mut made = Haystack { conversations: Vec::new(), questions: Vec::new() };
    let mut day = 0;
    let subjects = several(draw, 6, TRAITS.len());
    for (n, subject) in subjects.iter().enumerate() {
        let about = &TRAITS[*subject];
        let values = several(draw, 2, about.values.len());
        let (kind, times) = match n {
            0 | 1 => ("single", 1),
            2 | 3 => ("updated", 2),
            _ => ("both", 2),
        };
        let mut evidence = Vec::new();
        for value in values.iter().take(times) {
            noise(draw, &mut made, &mut day);
            let said = pick(draw, &about.said).replace("{}", about.values[*value]);
            evidence.push(converse(draw, &mut made, &mut day, format!("by the way, {said}")));
        }
        let asked = *pick(draw, &about.asked);
        let text = match kind {
            "both" => format!("{asked} first, and later?"),
            _ => asked.to_owned(),
        };
        if kind == "updated" {
            evidence.remove(0);
        }
        made.questions.push(Question { kind: kind.to_owned(), text, evidence });
    }
    for _ in 0..6 {
        noise(draw, &mut made, &mut day);
    }
    made
}

/// Conversations that answer nothing.
fn noise(draw: &mut Draw, made: &mut Haystack, day: &mut i64) {
    for _ in 0..2 {
        let about = pick(draw, &TRAITS);
        let value = *pick(draw, &about.values);
        let said = pick(draw, &about.other).replace("{}", value);
        converse(draw, made, day, said);
    }
}

/// A conversation of three turns, `said` at some place among them. Returns its id.
fn converse(draw: &mut Draw, made: &mut Haystack, day: &mut i64, said: String) -> String {
    *day += 1 + draw.below(5) as i64;
    let mut turns: Vec<String> = (0..2).map(|_| (*pick(draw, &SMALL_TALK)).to_owned()).collect();
    turns.insert(draw.below(3) as usize, said);
    let id = format!("c{}", made.conversations.len());
    let turns = turns.into_iter().map(|said| (said, (*pick(draw, &REPLIES)).to_owned())).collect();
    let at = Timestamp::from_micros((FIRST_DAY + *day * DAY) * 1_000_000);
    made.conversations.push(Conversation { id: id.clone(), at, turns });
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_for_ever() {
        let made = generate(1, 3);
        assert_eq!(made, generate(1, 3));
        assert_ne!(made, generate(2, 3));
        assert_eq!(made[0], generate(1, 1)[0], "more users change nothing about the others");
    }

    #[test]
    fn every_answer_is_in_its_evidence() {
        for haystack in generate(3, 50) {
            assert_eq!(haystack.questions.len(), 6);
            let ids: std::collections::BTreeSet<&String> =
                haystack.conversations.iter().map(|c| &c.id).collect();
            assert_eq!(ids.len(), haystack.conversations.len());
            assert!(haystack.conversations.is_sorted_by_key(|c| c.at));
            for question in &haystack.questions {
                assert_eq!(question.evidence.len(), if question.kind == "both" { 2 } else { 1 });
                assert!(question.evidence.iter().all(|id| ids.contains(id)));
            }
        }
    }
}
