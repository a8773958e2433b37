/*
 * The member whose word is the lowest: a figure that the workers publish themselves, such as
 * the requests that they are busy with, in a plain store to shared memory.
 *
 * Of equals the first is taken. As candidates come in the order of next-available, which
 * begins at the member that a hash of the flow gives, equals share.
 */
#include "overspill_dispatcher.h"

OVERSPILL_DISPATCHER(published, request)
{
	struct overspill_candidate *c, *best = overspill_candidate(request, 0);

	OVERSPILL_FOR_EACH(c, request)
		if (c->word < best->word)
			best = c;
	return best;
}
