//! A tool as `#[tool]` declares it: the arguments are named once, by a function that is passed through twice.

use std::fmt;
use std::time::Duration;

use loomflow_core::{Effect, PermittedCall, ToolOutcome, ToolSpec};
use schemars::JsonSchema;
use schemars::generate::SchemaGenerator;
use serde::de::DeserializeOwned;

use crate::absent::absent;
use crate::read::{Reading, Taken};
use crate::schema::{Property, generator, object};
use crate::words::type_words;

/// What the macro read from attribute, function and documentation. `A` is the tuple of the arguments.
#[allow(clippy::exhaustive_structs, reason = "the macro of the same version fills in every field")]
pub struct Declaration<A> {
    /// The tool's name, checked by the macro.
    pub name: &'static str,
    /// What the model is told it is for.
    pub description: &'static str,
    /// What a call does.
    pub effect: Effect,
    /// How long a call may take.
    pub timeout: Option<Duration>,
    /// Whether calling twice is calling once; `None` leaves it to the effect.
    pub idempotent: Option<bool>,
    /// Names each argument, with its type, in order.
    pub arguments: fn(&mut Pass<'_, '_>) -> Option<A>,
}

impl<A> Declaration<A> {
    /// Passes through the arguments once to learn the schema.
    ///
    /// # Panics
    ///
    /// When the name is not a tool's name, which the macro has checked.
    #[must_use]
    pub fn declare(self) -> Declared<A> {
        let mut collecting = Collecting { properties: Vec::new(), generator: generator() };
        (self.arguments)(&mut Pass(Doing::Collect(&mut collecting)));
        let Collecting { properties, generator } = collecting;
        let names: Vec<(&str, bool)> = properties.iter().map(|p| (p.name, p.required)).collect();
        let parameters = object(properties, generator);
        let words = |name: &str| type_words(&parameters["properties"][name], &parameters);
        let taken = names.into_iter().map(|(name, required)| Taken { name, words: words(name), required });
        let taken = taken.collect();
        let mut spec = ToolSpec::new(self.name, self.description.trim(), self.effect, parameters)
            .expect("the macro checked the name, and an object schema was made here");
        if let Some(timeout) = self.timeout {
            spec = spec.with_timeout(timeout);
        }
        if let Some(idempotent) = self.idempotent {
            spec = spec.with_idempotent(idempotent);
        }
        Declared { spec, taken, arguments: self.arguments }
    }
}

impl<A> fmt::Debug for Declaration<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Declaration({})", self.name)
    }
}

/// A tool whose schema is known.
pub struct Declared<A> {
    spec: ToolSpec,
    taken: Vec<Taken>,
    arguments: fn(&mut Pass<'_, '_>) -> Option<A>,
}

impl<A> Declared<A> {
    /// What the tool is.
    #[must_use]
    pub fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    /// Passes through the arguments again, to read them.
    ///
    /// # Errors
    ///
    /// What the model is told when they do not fit: everything that is wrong, and what the tool takes.
    pub fn read(&self, call: &PermittedCall) -> Result<A, ToolOutcome> {
        let mut reading = Reading::new(call.arguments(), &self.taken);
        let arguments = (self.arguments)(&mut Pass(Doing::Read(&mut reading)));
        match arguments {
            Some(arguments) if reading.fits() => Ok(arguments),
            _ => Err(ToolOutcome::error(reading.refusal(&self.spec.name))),
        }
    }
}

impl<A> fmt::Debug for Declared<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Declared({})", self.spec.name)
    }
}

/// One pass through a tool's arguments.
pub struct Pass<'p, 'r>(Doing<'p, 'r>);

enum Doing<'p, 'r> {
    Collect(&'p mut Collecting),
    Read(&'p mut Reading<'r>),
}

struct Collecting {
    properties: Vec<Property>,
    generator: SchemaGenerator,
}

impl Pass<'_, '_> {
    /// The next argument: its value, when arguments are read and it fits.
    pub fn argument<T: DeserializeOwned + JsonSchema>(
        &mut self,
        name: &'static str,
        description: &'static str,
    ) -> Option<T> {
        match &mut self.0 {
            Doing::Collect(collecting) => {
                let schema = collecting.generator.subschema_for::<T>();
                let required = absent::<T>().is_none();
                let description = description.trim();
                collecting.properties.push(Property { name, description, schema, required });
                None
            }
            Doing::Read(reading) => reading.argument(name),
        }
    }
}

impl fmt::Debug for Pass<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Doing::Collect(_) => "Pass(collect)",
            Doing::Read(_) => "Pass(read)",
        })
    }
}
