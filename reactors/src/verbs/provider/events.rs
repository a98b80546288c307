//! What a device reports by itself, taken off its queue one by one.

use rdma_sys::{ibv_async_event, ibv_event_type};

use super::device::Device;
use super::{AsyncEvent, QpNumber};

/// The next report; an inner none for one that means nothing here.
pub(super) fn next_event(device: &Device) -> Option<Option<AsyncEvent>> {
    // SAFETY: a pointer and a number, for both of which zero is a value.
    let mut event: ibv_async_event = unsafe { std::mem::zeroed() };
    let (get, acknowledge) =
        (device.library.ibv_get_async_event, device.library.ibv_ack_async_event);
    // SAFETY: the context is open and its descriptor doesn't block.
    if unsafe { get(device.context.as_ptr(), &mut event) } != 0 {
        return None;
    }
    let known = known(&event);
    // SAFETY: it came from ibv_get_async_event, and is acknowledged once.
    unsafe { acknowledge(&mut event) };
    Some(known)
}

/// What a report that is not acknowledged yet says.
fn known(event: &ibv_async_event) -> Option<AsyncEvent> {
    use ibv_event_type::*;
    Some(match event.event_type {
        IBV_EVENT_PORT_ACTIVE => AsyncEvent::PortUp,
        IBV_EVENT_PORT_ERR => AsyncEvent::PortDown,
        IBV_EVENT_GID_CHANGE | IBV_EVENT_LID_CHANGE => AsyncEvent::GidChanged,
        IBV_EVENT_DEVICE_FATAL => AsyncEvent::DeviceFatal,
        IBV_EVENT_QP_ACCESS_ERR | IBV_EVENT_QP_REQ_ERR => AsyncEvent::AccessViolated(pair(event)),
        IBV_EVENT_QP_FATAL => AsyncEvent::PairFailed(pair(event)),
        IBV_EVENT_QP_LAST_WQE_REACHED => AsyncEvent::LastReceive(pair(event)),
        IBV_EVENT_CQ_ERR => {
            // SAFETY: reports of this kind name a completion queue, as `pair` says.
            AsyncEvent::CompletionsFailed(unsafe { (*event.element.cq).handle })
        }
        IBV_EVENT_SRQ_ERR => {
            // SAFETY: reports of this kind name a shared receive queue, as `pair` says.
            AsyncEvent::ReceivesFailed(unsafe { (*event.element.srq).handle })
        }
        _ => return None,
    })
}

/// The queue pair that a report of its kind is about.
fn pair(event: &ibv_async_event) -> QpNumber {
    // SAFETY: reports of the kinds that ask here name a queue pair, which is not destroyed before
    // its reports are acknowledged (ibv_destroy_qp(3) waits for that).
    QpNumber(unsafe { (*event.element.qp).qp_num })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report as the library hands it out, about an object of its own.
    fn event(code: ibv_event_type, fill: impl FnOnce(&mut ibv_async_event)) -> AsyncEvent {
        // SAFETY: a pointer and a number, for both of which zero is a value.
        let mut event: ibv_async_event = unsafe { std::mem::zeroed() };
        event.event_type = code;
        fill(&mut event);
        known(&event).unwrap()
    }

    #[test]
    fn reports_name_what_they_are_about() {
        use ibv_event_type::*;
        // SAFETY: pointers, numbers and locks of pthreads, for all of which zero is a value.
        let (mut qp, mut cq, mut srq): (rdma_sys::ibv_qp, rdma_sys::ibv_cq, rdma_sys::ibv_srq) =
            unsafe { std::mem::zeroed() };
        (qp.qp_num, cq.handle, srq.handle) = (17, 3, 5);
        let mut about = |code| event(code, |event| event.element.qp = &raw mut qp);
        let [violated, asked, fatal, last] = [
            about(IBV_EVENT_QP_ACCESS_ERR),
            about(IBV_EVENT_QP_REQ_ERR),
            about(IBV_EVENT_QP_FATAL),
            about(IBV_EVENT_QP_LAST_WQE_REACHED),
        ];
        assert_eq!(violated, AsyncEvent::AccessViolated(QpNumber(17)));
        assert_eq!(asked, violated);
        assert_eq!(fatal, AsyncEvent::PairFailed(QpNumber(17)));
        assert_eq!(last, AsyncEvent::LastReceive(QpNumber(17)));
        let overflown = event(IBV_EVENT_CQ_ERR, |event| event.element.cq = &raw mut cq);
        assert_eq!(overflown, AsyncEvent::CompletionsFailed(3));
        let failed = event(IBV_EVENT_SRQ_ERR, |event| event.element.srq = &raw mut srq);
        assert_eq!(failed, AsyncEvent::ReceivesFailed(5));
        for (code, meant) in [
            (IBV_EVENT_PORT_ACTIVE, AsyncEvent::PortUp),
            (IBV_EVENT_PORT_ERR, AsyncEvent::PortDown),
            (IBV_EVENT_GID_CHANGE, AsyncEvent::GidChanged),
            (IBV_EVENT_LID_CHANGE, AsyncEvent::GidChanged),
            (IBV_EVENT_DEVICE_FATAL, AsyncEvent::DeviceFatal),
        ] {
            assert_eq!(event(code, |_| ()), meant);
        }
    }
}
