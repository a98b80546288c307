//! What an owner grants its peers, by region and by block.

use std::ops::Range;

use super::Engine;
use crate::memory::grant::Granting;
use crate::memory::{Access, Block, Grant, GrantOptions, Region};
use crate::{Error, Result};

impl Engine {
    /// Grants peers a range of bytes of a region, which needn't be published for it: of a region
    /// with [`Access::LOCAL`], nothing but its grants can be reached. The peer uses the grant's
    /// reference ([`crate::Batch::read_from`], [`crate::Batch::write_to`]), which the application
    /// brings to it. Between kvrail peers only.
    ///
    /// ```
    /// # use kvrail::{Access, Batch, Engine, GrantOptions, Location};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder().start()?;
    /// let cache = engine.allocate(1 << 20, Location::Cpu(None), Access::LOCAL)?;
    /// let grant = engine.grant(&cache, 0..4096, Access::READ, GrantOptions::default())?;
    /// let reference = grant.reference().to_string().parse()?;
    /// # let peer = engine.local();
    /// # let page = engine.allocate(4096, Location::Cpu(None), Access::LOCAL)?;
    /// let mut batch = Batch::new(&peer);
    /// batch.read_from(page.lease(0..4096)?, &reference, 0);
    /// engine.transfer(batch).await?;
    ///
    /// grant.revoke().await;
    /// let mut batch = Batch::new(&peer);
    /// batch.read_from(page.lease(0..4096)?, &reference, 0);
    /// let failed = engine.transfer(batch).await.unwrap_err();
    /// assert_eq!(failed.error().kind(), kvrail::ErrorKind::Stale);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A grant that was taken back names nothing any more:
    ///
    /// ```compile_fail
    /// # async fn misuse(grant: kvrail::Grant) -> kvrail::Reference {
    /// grant.revoke().await;
    /// grant.reference()
    /// # }
    /// ```
    ///
    /// # Errors
    /// Refused: it would permit nothing, the range isn't inside the region, or the region is not
    /// registered here. Busy: too many grants hold. Draining: the engine is. Closed: it was
    /// stopped.
    pub fn grant(
        &self,
        region: &Region,
        range: Range<usize>,
        access: Access,
        options: GrantOptions,
    ) -> Result<Grant> {
        self.grant_as(region, range, access, options, 0)
    }

    /// Grants peers a block of a pool, for as long as nobody gives it back: dropping the block
    /// takes its grants back, and the pool hands it out again only when no peer can reach it.
    ///
    /// # Errors
    /// As [`Engine::grant`].
    pub fn grant_block(
        &self,
        block: &Block,
        access: Access,
        options: GrantOptions,
    ) -> Result<Grant> {
        let generation = block.generation();
        let grant = self.grant_as(block.region(), block.range(), access, options, generation)?;
        block.tie(&grant);
        Ok(grant)
    }

    fn grant_as(
        &self,
        region: &Region,
        range: Range<usize>,
        access: Access,
        options: GrantOptions,
        generation: u64,
    ) -> Result<Grant> {
        if self.is_draining() {
            return Err(Error::draining("this engine grants nothing any more"));
        }
        let GrantOptions { holder, expires_after } = options;
        let expires_ns = expires_after.map(|after| {
            let after_ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
            self.inner.now_ns().saturating_add(after_ns)
        });
        let granting = Granting { region, range, access, holder, expires_ns, generation };
        let grant = self.inner.host.grants.add(granting)?;
        // Looked at last: what is unregistered from here on takes the grant along.
        match self.inner.host.regions.holds(region) {
            true => Ok(grant),
            false => Err(Error::refused("the region is not registered with this engine")),
        }
    }
}
