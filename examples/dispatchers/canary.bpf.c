/*
 * A share of the requests goes to one member, the canary, that runs a new release; the
 * others to all but it. Set at compile time:
 *
 *     clang ... -DCANARY=3 -DPERCENT=5
 *
 * CANARY is the member's number as `overspill show` tells it. By the flow's hash, so that a
 * client that calls again, unanswered, comes to the same release.
 */
#include "overspill_dispatcher.h"

#ifndef CANARY
#define CANARY 0
#endif
#ifndef PERCENT
#define PERCENT 10
#endif

OVERSPILL_DISPATCHER(canary, request)
{
	__u32 hash = overspill_mix(request->hash);
	int wanted = overspill_share(hash, 100) < PERCENT;
	struct overspill_candidate *c;
	__u32 nth;

	OVERSPILL_FOR_EACH(c, request) {
		if (c->member != CANARY)
			continue;
		if (wanted || request->count == 1)
			return c;
		/* Another one, each as often as the others: if it were always the next, that
		 * one would get the canary's share as well as its own. */
		nth = overspill_share(overspill_mix(hash), request->count - 1);
		return overspill_candidate(request, nth < overspill_place(request, c) ? nth : nth + 1);
	}
	/* The canary is full, or does not run: as if there were none. */
	return overspill_candidate(request, 0);
}
