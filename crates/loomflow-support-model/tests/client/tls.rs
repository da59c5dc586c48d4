//! TLS for real: a server with a certificate of its own authority, trusted and not.

use std::sync::Arc;

use crate::common::{answer, context, post, read_request};
use loomflow_core::ErrorKind;
use loomflow_support_model::{ClientConfig, HttpClient};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Serves `localhost` over TLS. Gives the address and the authority's certificate.
async fn serve_tls() -> (String, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/v1", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            read_request(&mut stream).await.unwrap();
            stream.write_all(&answer(200, "", "over TLS")).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (url, authority_pem)
}

#[tokio::test]
async fn an_extra_authority_is_trusted_and_an_unknown_one_is_not() {
    let (url, authority) = serve_tls().await;
    let config = ClientConfig::new(&url).with_ca_certificates(authority);
    let trusting = HttpClient::new("test", &config).unwrap();
    let mut response = trusting.post(&context(), post()).await.unwrap();
    assert_eq!(response.read_all(100).await.unwrap(), b"over TLS");

    let strict = HttpClient::new("test", &ClientConfig::new(&url)).unwrap();
    let error = strict.post(&context(), post()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.message().contains("certificate"), "{error}");

    let elsewhere = ClientConfig::new(url.replace("localhost", "127.0.0.1"));
    let elsewhere = HttpClient::new("test", &elsewhere.with_ca_certificates(serve_tls().await.1)).unwrap();
    assert_eq!(elsewhere.post(&context(), post()).await.unwrap_err().kind(), ErrorKind::Unreachable);
}
