// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The dispatcher of the histories: it answers by every figure that it is told, refuses, and
 * answers what cannot be. `asked` in bench.rs is the same in Rust.
 */
#include "overspill_dispatcher.h"

OVERSPILL_DISPATCHER(asked, request)
{
	struct overspill_candidate *c, *best = overspill_candidate(request, 0);
	__u32 word = request->remote_address[3] ^ request->local_address[3] ^
		     request->remote_port ^ request->local_port;
	__u32 hash = overspill_mix(request->hash);

	switch (hash % 8) {
	case 0:
		return OVERSPILL_REFUSE;
	case 1:
		return overspill_candidate(request, request->count);
	case 2:
		return overspill_candidate(request, request->count - 1);
	case 3:
		OVERSPILL_FOR_EACH(c, request)
			if ((c->queued + c->half_open) * best->capacity <
			    (best->queued + best->half_open) * c->capacity)
				best = c;
		return best;
	case 4:
		OVERSPILL_FOR_EACH(c, request)
			if (c->established * best->weight < best->established * c->weight)
				best = c;
		return best;
	case 5:
		OVERSPILL_FOR_EACH(c, request)
			if (c->called)
				best = c;
		return best;
	case 6:
		OVERSPILL_FOR_EACH(c, request)
			if (c->member > best->member)
				best = c;
		return best;
	}
	return overspill_candidate(request, word % request->count);
}
