//! Images that a user shows to a model.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The largest image, in bytes: what the strictest of the common providers takes.
const MAX_BYTES: usize = 5 << 20;

/// An image for the model to look at, checked to be of a kind that providers take.
///
/// The model sees it in the run it is given to. It is neither journaled nor remembered: what is kept is a line of text
/// that says there was one.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    media_type: &'static str,
    source: ImageSource,
}

/// Where an image's bytes are.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageSource {
    /// Here.
    Bytes(Arc<[u8]>),
    /// Behind an `https` address that the provider, not this process, reads.
    Url(Arc<str>),
}

impl Image {
    /// An image from its bytes: PNG, JPEG, GIF or WebP, told apart by how they begin, at most 5 MiB.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for other formats and larger images.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.len() > MAX_BYTES {
            return Err(Error::invalid_input(format!(
                "the image is {} bytes large; at most {MAX_BYTES} are allowed",
                bytes.len()
            )));
        }
        let media_type = sniff(&bytes).ok_or_else(|| {
            Error::invalid_input("the image is none of PNG, JPEG, GIF and WebP: convert it to one of them")
        })?;
        Ok(Self { media_type, source: ImageSource::Bytes(bytes) })
    }

    /// An image that the provider is to read from an `https` address.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for any other scheme, for blanks and controls, for
    /// credentials within the address, and for one longer than 2,048 bytes.
    pub fn from_url(url: impl Into<Arc<str>>) -> Result<Self> {
        let url = url.into();
        let rest = url.strip_prefix("https://").unwrap_or_default();
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let plain = url.chars().all(|c| !c.is_control() && !c.is_whitespace());
        if host.is_empty() || host.contains('@') || !plain || url.len() > 2_048 {
            return Err(Error::invalid_input(
                "an image's address begins with https:// and a host, has no credentials, blanks or controls, and at \
                 most 2,048 bytes",
            ));
        }
        Ok(Self { media_type: "", source: ImageSource::Url(url) })
    }

    /// Its media type, such as `image/png`; empty for an address, where only the provider will know.
    #[must_use]
    pub fn media_type(&self) -> &'static str {
        self.media_type
    }

    /// Where its bytes are.
    #[must_use]
    pub fn source(&self) -> &ImageSource {
        &self.source
    }

    /// How many bytes of it are here.
    pub(crate) fn bytes(&self) -> usize {
        match &self.source {
            ImageSource::Bytes(bytes) => bytes.len(),
            ImageSource::Url(_) => 0,
        }
    }

    /// What is kept of it where images are not.
    pub(crate) fn note(&self) -> String {
        match &self.source {
            ImageSource::Bytes(bytes) => format!("[image: {}, {} bytes]", self.media_type, bytes.len()),
            ImageSource::Url(_) => "[image: by address]".to_owned(),
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.note())
    }
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Url(_) => f.write_str("Url(..)"),
        }
    }
}

fn sniff(bytes: &[u8]) -> Option<&'static str> {
    let webp = || bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    match bytes {
        _ if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => Some("image/png"),
        _ if bytes.starts_with(b"\xff\xd8\xff") => Some("image/jpeg"),
        _ if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") => Some("image/gif"),
        _ if webp() => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_told_by_its_first_bytes() {
        for (bytes, expected) in [
            (&b"\x89PNG\r\n\x1a\n.."[..], "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"GIF89a..", "image/gif"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        ] {
            assert_eq!(Image::from_bytes(bytes).unwrap().media_type(), expected);
        }
        for bad in [&b""[..], b"<svg/>", b"RIFF\0\0\0\0WAVE", b"\x89PNG"] {
            assert!(Image::from_bytes(bad).is_err());
        }
        let mut large = b"GIF89a".to_vec();
        large.resize(MAX_BYTES + 1, 0);
        assert!(Image::from_bytes(large).unwrap_err().message().contains("5242881 bytes"));
    }

    #[test]
    fn an_address_is_https_and_carries_no_credentials() {
        assert!(Image::from_url("https://example.com/a.png?x=1@2").is_ok());
        for bad in [
            "",
            "http://e.com/a",
            "file:///etc/passwd",
            "https://",
            "https://u:p@e.com/",
            "https://e.com/a b",
        ] {
            assert!(Image::from_url(bad).is_err(), "{bad}");
        }
    }
}
