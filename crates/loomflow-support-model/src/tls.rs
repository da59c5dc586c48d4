//! One TLS configuration on one provider, ring. The process's default provider is neither used nor set.

use std::sync::Arc;

use loomflow_core::{Error, ErrorKind, Result};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

/// Trusts the platform's authorities and those in `pems`.
///
/// Where the platform has none, only those in `pems` are trusted: a client of plain-text servers must be possible there.
pub(crate) fn client_config(pems: &[String]) -> Result<ClientConfig> {
    let extra = certificates(pems)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(ErrorKind::Internal, "TLS could not be set up").with_source(e))?;
    let config = match platform_and(extra.clone(), provider) {
        Some(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
        None => builder.with_root_certificates(only(extra)?),
    };
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn platform_and(extra: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Option<Verifier> {
    Verifier::new_with_extra_roots(extra, provider).ok()
}

fn only(extra: Vec<CertificateDer<'static>>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in extra {
        roots.add(certificate).map_err(|e| unusable(&e.to_string()))?;
    }
    Ok(roots)
}

fn certificates(pems: &[String]) -> Result<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    for pem in pems {
        let before = all.len();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            all.push(certificate.map_err(|e| unusable(&e.to_string()))?);
        }
        if all.len() == before {
            return Err(unusable("there is no certificate in it"));
        }
    }
    // What is not a certificate is told now, with its cause, and not at the first call.
    only(all.clone())?;
    Ok(all)
}

fn unusable(why: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("the extra CA certificates cannot be used ({why}); they are PEM text"),
    )
}
