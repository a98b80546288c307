//! Keeping what is published: renewed while the engine lives, put again where the metadata service
//! has lost it, gone when the engine stops. Whatever the service does, only this waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::sleep;

use super::Shared;
use crate::error::{Error, Result};
use crate::limits::METADATA_RENEWALS;
use crate::metrics;

/// What the metadata service has of us, as far as we know.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// It has the name, and what we published at some time.
    is_registered: bool,
    /// What it has is what we have now.
    is_current: bool,
}

impl Shared {
    /// Publishes what the host has now. The lock is held, so that the newest is written last.
    pub(super) async fn publish(&self) -> Result<()> {
        let mut published = self.published.lock().await;
        if self.stopping.load(Ordering::Acquire) {
            return Err(Error::closed("the control plane is stopping"));
        }
        published.is_current = false;
        let (descriptor, control) = (self.host.published(), &self.identity.control);
        self.metadata.publish(&descriptor, control, &self.client.limits).await?;
        *published = Published { is_registered: true, is_current: true };
        Ok(())
    }

    pub(super) async fn withdraw(&self) -> Result<()> {
        let mut published = self.published.lock().await;
        if std::mem::take(&mut *published).is_registered {
            let Self { metadata, identity, .. } = self;
            metadata.withdraw(&identity.name, &identity.control).await?;
        }
        Ok(())
    }

    /// Renews what is published, until the control plane ends.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut has_failed = false;
        loop {
            sleep(self.client.limits.metadata_lease / METADATA_RENEWALS).await;
            let renewed = self.renew().await;
            metrics::renewed(&renewed);
            let name = &self.identity.name;
            match &renewed {
                Ok(true) if has_failed => tracing::info!(name, "the metadata server is back"),
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(name, "the metadata server had lost us: published again");
                }
                // Once for each trouble: the next try may be seconds away for hours.
                Err(error) if !has_failed => {
                    tracing::warn!(name, %error, "peers may not find us: trying again");
                }
                Err(error) => tracing::debug!(name, %error, "peers still may not find us"),
            }
            has_failed = renewed.is_err();
        }
    }

    /// False if what was published wasn't there any more, and is again.
    async fn renew(&self) -> Result<bool> {
        let mut published = self.published.lock().await;
        if !published.is_registered || self.stopping.load(Ordering::Acquire) {
            return Ok(true);
        }
        let (descriptor, control) = (self.host.published(), &self.identity.control);
        if published.is_current {
            return self.metadata.renew(&descriptor, control, &self.client.limits).await;
        }
        // A change that did not get through.
        self.metadata.publish(&descriptor, control, &self.client.limits).await?;
        published.is_current = true;
        Ok(true)
    }
}
