//! `kvrail metadata-server`: the store of descriptors that Mooncake calls http metadata.

use clap::Args;
use kvrail::{Result, metadata};

#[derive(Args)]
pub struct Options {
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

pub fn run(options: &Options) -> Result<()> {
    let limits = metadata::server::ServerLimits::default();
    let address = (options.host.as_str(), options.port);
    let server = metadata::server::MetadataServer::start(address, limits)?;
    println!("metadata server at {}", server.url());
    server.wait();
    Ok(())
}
